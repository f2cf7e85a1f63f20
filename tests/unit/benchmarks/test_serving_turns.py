"""A peer that fails leaves the others to go on, and the table says why."""

from __future__ import annotations

import pytest

from benchmarks.serving import _reason


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
