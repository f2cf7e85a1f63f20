"""A lighthouse that was started anew counts its quorums from 1 again: they are not taken for those before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from student_worker.elastic.quorum import ToldApart


class Client:
    """Answers with one quorum after another, as torchft's does."""

    def __init__(self, *quorums: SimpleNamespace) -> None:
        self._quorums = list(quorums)

    def _quorum(self, **_: Any) -> SimpleNamespace:
        return self._quorums.pop(0)

    def should_commit(self) -> bool:
        return True


def quorum(number: int, members: str, max_step: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        quorum_id=number, replica_ids=members.split(), store_address="10.0.0.1:29500", max_step=max_step, heal=False
    )


def test_the_same_number_of_other_members_is_another_quorum() -> None:
    client = ToldApart(Client(quorum(2, "a:1 b:2"), quorum(2, "a:1 b:2 c:3"), quorum(3, "a:1 b:2")))
    assert len({client._quorum().quorum_id for _ in range(3)}) == 3


def test_one_quorum_stays_one_from_step_to_step_and_for_every_member() -> None:
    client = ToldApart(Client(quorum(2, "a:1 b:2", 5), quorum(2, "a:1 b:2", 6), quorum(2, "b:2 a:1", 6)))
    assert len({client._quorum().quorum_id for _ in range(3)}) == 1


def test_members_who_meet_again_at_another_step_meet_at_another_place() -> None:
    client = ToldApart(Client(quorum(1, "a:1 b:2", 0), quorum(1, "a:1 b:2", 50)))
    assert [client._quorum().store_address for _ in range(2)] == ["10.0.0.1:29500/step-0", "10.0.0.1:29500/step-50"]


def test_all_else_is_torchfts_own() -> None:
    client = ToldApart(Client(quorum(1, "a:1")))
    told = client._quorum(step=3)
    assert (told.heal, told.replica_ids, told.max_step) == (False, ["a:1"], 0)
    assert client.should_commit()
