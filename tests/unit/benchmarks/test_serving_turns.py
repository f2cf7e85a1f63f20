"""A peer that fails leaves the others to go on, and the table says why."""

from __future__ import annotations

import pytest

from benchmarks._serving.contestants import Contestant
from benchmarks.serving import _over_peers, _reason


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
    rates = {"large": {"stillhouse": [4.0, 4.0], "a": [2.0, 1.0], "b": [8.0]}, "small": {"stillhouse": [4.0, 6.0]}}
    assert _over_peers(rates, peers, 2) == {
        "dense_mb_s_over_best_grpc_peer": 3.0,
        "dense_mb_s_over_best_peer": 3.0,
    }
