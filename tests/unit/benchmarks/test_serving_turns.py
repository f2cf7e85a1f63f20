"""A peer that fails leaves the others to go on, and the table says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks._serving.contestants import Contest, Contestant
from benchmarks.serving import OWN, _over_peers, _reason, _Turns


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (
            'peer says nothing more:\ngrpc.RpcError: <of RPC:\n\tdetails = "Deadline Exceeded"\n\tdebug = 1\n>',
            'details = "Deadline Exceeded"',
        ),
        ("Traceback:\n  line 3\nValueError: no such model\n  ^^^^\n", "ValueError: no such model"),
        ("\n>\n", "it gave no reason"),
    ],
)
def test_the_reason_is_the_line_that_says_most(told: str, reason: str) -> None:
    assert _reason(told) == reason


def test_a_peer_counts_where_it_did_its_turns_to_the_end() -> None:
    peers = [Contestant("a", "", "", "a", over_grpc=True), Contestant("b", "", "", "b")]
    ours = OWN[0].name
    rates = {"large": {ours: [4.0, 4.0], "a": [2.0, 1.0], "b": [8.0]}, "small": {ours: [4.0, 6.0]}}
    assert _over_peers(rates, peers, 2) == {
        "dense_mb_s_over_best_grpc_peer": 3.0,
        "dense_mb_s_over_best_peer": 3.0,
    }


class _Broken:
    def line(self, seconds: float) -> dict[str, str]:
        del seconds
        raise RuntimeError("it does not start")


def test_a_server_that_does_not_start_fails_at_each_of_its_doors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Contest, "_start", lambda *_: _Broken())
    doors = [Contestant(name, "peer", name, "environment") for name in ("grpc", "http")]
    assert _Turns(Contest(tmp_path), doors).failed == dict.fromkeys(("grpc", "http"), "it does not start")
