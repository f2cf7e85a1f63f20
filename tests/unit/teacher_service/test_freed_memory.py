"""Memory of answers is kept for the next one, unless the environment says otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Large pieces come and go; the page faults of the last rounds are counted.
CHURN = """
import resource
from teacher_service.freed_memory import keep_freed_memory
print(keep_freed_memory())
def answer():
    pieces = [bytes(200_000) for _ in range(16)]
    return b"".join(pieces)
for _ in range(10):
    answer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    answer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def churn(environment: dict[str, str]) -> tuple[bool, int]:
    argv = [sys.executable, "-c", CHURN]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return lines[0] == "True", int(lines[1])


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: another C library")
def test_pages_of_an_answer_are_not_asked_for_anew_for_the_next_one() -> None:
    is_kept, faults = churn({})
    assert is_kept
    assert faults < 500
    is_kept, faults = churn({"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"})
    assert not is_kept
    assert faults > 10_000, "what is counted does not tell"
