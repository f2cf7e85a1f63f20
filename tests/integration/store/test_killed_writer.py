"""A writer that is killed at any moment leaves what another goes on from, to the bytes of a run that nobody stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.store.verify import verify
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, folder_bytes, make_store, small_corpus

KILLS = 4

# Says when it is about to write, so that whoever kills it can choose how far in it will be.
WRITER = """
import sys
from pathlib import Path
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, make_store, small_corpus
corpus = small_corpus(Path(sys.argv[1]), tokens=4000)
print("ready", flush=True)
make_store(Path(sys.argv[2]), corpus, teacher=RandomTeacher(VOCABULARY), samples_per_shard=8)
print("done", flush=True)
"""


def started(corpus: Path, store: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(corpus), str(store)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.timeout(240)
def test_killed_at_random_moments_it_ends_with_the_same_files(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus", tokens=4000)
    began = time.monotonic()
    make_store(tmp_path / "unbroken", corpus, teacher=RandomTeacher(VOCABULARY), samples_per_shard=8)
    whole_seconds = time.monotonic() - began
    generator = random.Random(5)
    kills = 0
    for _ in range(KILLS):
        process = started(tmp_path / "corpus", tmp_path / "store")
        time.sleep(generator.uniform(0, whole_seconds / 3))
        process.send_signal(signal.SIGKILL)
        kills += process.wait(30) == -signal.SIGKILL
        assert process.stdout is not None
        process.stdout.close()
    assert kills >= KILLS / 2, "most of them were still at work"
    process = started(tmp_path / "corpus", tmp_path / "store")
    assert process.stdout is not None
    # Through the file that gave the first line: it may hold the second one too, which `communicate` would not see.
    assert process.stdout.read() == "done\n"
    process.stdout.close()
    assert process.wait(30) == 0
    assert folder_bytes(tmp_path / "store") == folder_bytes(tmp_path / "unbroken")
    assert verify(tmp_path / "store", teacher=RandomTeacher(VOCABULARY)).faults == []
