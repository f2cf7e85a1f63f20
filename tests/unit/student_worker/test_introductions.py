"""Workers that meet decide alike who trains on: never a stranger, never more than there is work for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_worker.elastic.introductions import (
    Introduction,
    RunMismatchError,
    TooManyWorkersError,
    admit,
    share_a_device,
)

RUN = {"recipe": "8c1f", "learning_rate": "0.001", "data": "77aa", "release": "0.1.0"}


def texts(*introductions: Introduction) -> list[str]:
    return [introduction.text() for introduction in introductions]


def test_workers_of_one_run_train_together() -> None:
    told = texts(*(Introduction(RUN, "token", step, established=step > 0) for step in (0, 7, 3)))
    assert [admit(rank, told, 4) for rank in range(3)] == [([1, 0, 2], 2)] * 3


@pytest.mark.parametrize(
    ("stranger", "named"),
    [
        (Introduction({**RUN, "recipe": "ffff", "learning_rate": "0.1"}, "token", 900), "learning_rate is 0.001 there"),
        (Introduction({**RUN, "release": "9.9.9"}, "token", 900), "release is 0.1.0 there and 9.9.9 here"),
        (Introduction({**RUN, "data": "0000"}, "token", 900), "data is 77aa there and 0000 here"),
        (Introduction({}, "token", 900), "there and not told here"),
        (Introduction(RUN, "other", 900), "token is not the run's"),
    ],
)
def test_the_stranger_must_leave_and_is_told_why_and_the_run_goes_on(stranger: Introduction, named: str) -> None:
    member = Introduction(RUN, "token", 12, established=True)
    told = texts(stranger, member)
    assert admit(1, told, 4) == ([1], 0)
    with pytest.raises(RunMismatchError, match=named):
        admit(0, told, 4)


def test_a_recipe_is_told_apart_by_its_keys_and_not_by_its_hash() -> None:
    told = texts(Introduction(RUN, "t"), Introduction({**RUN, "recipe": "ffff", "learning_rate": "0.1"}, "t"))
    with pytest.raises(RunMismatchError) as refused:
        admit(1, told, 4)
    assert "ffff" not in str(refused.value)


def test_many_differences_are_named_in_part_and_counted() -> None:
    other = {f"key_{number}": "x" for number in range(10)}
    with pytest.raises(RunMismatchError, match="and 6 more"):
        admit(1, texts(Introduction({}, "t", 1), Introduction(other, "t")), 4)


def test_among_equals_the_lowest_rank_is_right() -> None:
    told = texts(Introduction(RUN, "token"), Introduction({**RUN, "data": "else"}, "token"))
    assert admit(0, told, 4) == ([0], 0)
    with pytest.raises(RunMismatchError):
        admit(1, told, 4)


def test_the_newest_above_the_number_of_micro_shards_leave() -> None:
    old = [Introduction(RUN, "token", 9, established=True) for _ in range(2)]
    told = texts(Introduction(RUN, "token", 9), old[0], Introduction(RUN, "token", 4), old[1])
    assert admit(1, told, 2) == admit(3, told, 2) == ([1, 3], 0)
    for rank in (0, 2):
        with pytest.raises(TooManyWorkersError, match="2 workers already, as many as micro_shards"):
            admit(rank, told, 2)
    assert admit(0, told, 3) == ([0, 1, 3], 0)  # of the two newcomers the one that is further on


def test_those_who_are_behind_come_last_and_are_counted() -> None:
    steps = (4, 9, 0, 9)
    told = texts(*(Introduction(RUN, "token", step, established=step == 9) for step in steps))
    assert [admit(rank, told, 4) for rank in range(4)] == [([1, 3, 0, 2], 2)] * 4


def test_a_peer_that_introduces_itself_in_another_way_must_leave() -> None:
    told = [*texts(Introduction(RUN, "token", 3, established=True)), "[]", "no JSON", json.dumps({"run": 5})]
    assert admit(0, told, 4) == ([0], 0)
    with pytest.raises(RunMismatchError):
        admit(2, told, 4)


WORKERS = st.lists(
    st.builds(
        lambda recipe, token, step, established: Introduction({"recipe": recipe}, token, step, established),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["t", "u"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@given(workers=WORKERS, max_workers=st.integers(1, 4))
def test_all_come_to_the_same_answer_and_somebody_stays(workers: list[Introduction], max_workers: int) -> None:
    told = texts(*workers)
    answers: dict[int, tuple[list[int], int]] = {}
    for rank in range(len(workers)):
        try:
            answers[rank] = admit(rank, told, max_workers)
        except (RunMismatchError, TooManyWorkersError):
            continue
    assert answers
    members, newcomers = next(iter(answers.values()))
    assert all(answer == (members, newcomers) for answer in answers.values())
    assert sorted(members) == sorted(answers)
    assert len(members) <= max_workers
    steps = [workers[rank].step for rank in members]
    assert newcomers < len(members), "somebody has the weights"
    assert [step < max(steps) for step in steps] == [False] * (len(members) - newcomers) + [True] * newcomers


def test_an_introduction_shows_no_token() -> None:
    assert "secret-of-the-run" not in Introduction(RUN, "secret-of-the-run").text()


@pytest.mark.parametrize(
    ("devices", "shared"), [(("GPU-a", "GPU-b"), False), (("GPU-a", "GPU-b", "GPU-a"), True), (("", ""), False)]
)
def test_all_know_alike_whether_two_of_them_share_a_gpu(devices: tuple[str, ...], shared: bool) -> None:
    assert share_a_device(texts(*(Introduction(RUN, "token", device=device) for device in devices))) is shared
