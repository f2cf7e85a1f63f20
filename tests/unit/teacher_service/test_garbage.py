"""Calls leave no garbage to look for, so it is looked for seldom; what there is is found all the same."""

from __future__ import annotations

import subprocess
import sys

COUNTED = """
import gc
from teacher_service.garbage import look_for_garbage_seldom

class Node:
    gone = 0
    def __init__(self):
        self.me = self
    def __del__(self):
        Node.gone += 1

def churn():
    before = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(50_000)]
    return gc.get_stats()[0]["collections"] - before

often = churn()
look_for_garbage_seldom()
seldom = churn()
for _ in range(50_000):
    Node()
print(often, seldom, Node.gone)
"""


def test_garbage_is_looked_for_seldom_and_found() -> None:
    argv = [sys.executable, "-c", COUNTED]
    often, seldom, gone = map(int, subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert 1 <= seldom < often / 5
    assert gone > 30_000
