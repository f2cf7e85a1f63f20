"""In deterministic mode not one bit of an answer tells what shared its batch, or which process computed it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.request import All, Explicit, From, Last, Positions, Sequence
from teacher_service.backends import TeacherBackend
from teacher_service.backends.opening import open_backend
from teacher_service.backends.transformers import TransformersBackend
from teacher_service.batching import Computed, Job
from teacher_service.computing import BatchComputer, answers_fingerprint
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings
from tests.tiny_models import VOCABULARY_SIZE, tiny_model

LENGTHS = (1, 2, 5, 16, 17, 23, 31, 64, 70, 100, 3, 23)
ENCODINGS: tuple[Encoding, ...] = (
    Dense(),
    TopK(8),
    Sampled(50),
    Hidden("float32"),
    Candidates((3, 9)),
    Dense("float16"),
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def _ids(length: int, vocabulary_size: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, vocabulary_size, (length,), generator=generator).tolist())


def _jobs(loop: Any, vocabulary_size: int) -> list[Job]:
    """Every encoding, at every kind of positions, of lengths short and long; one sequence is packed."""
    jobs = []
    for index, length in enumerate(LENGTHS):
        asked: tuple[Positions, ...] = (All(), Last(), From(length // 2), Explicit((0,)))
        segments = (length // 3, length - length // 3) if index == 7 else ()
        sequence = Sequence(_ids(length, vocabulary_size, index), segments, asked[index % 4])
        encoding = ENCODINGS[index % len(ENCODINGS)]
        jobs.append(Job(sequence, encoding, 1.0 + index % 2, vocabulary_size, None, loop.create_future()))
    return jobs


def _bytes(compute: BatchComputer, jobs: list[Job]) -> list[bytes | memoryview]:
    payloads = []
    for outcome in compute(jobs):
        assert isinstance(outcome, Computed), outcome
        payloads.append(outcome.payload)
    return payloads


def _assert_only_the_request_counts(
    backend: TeacherBackend, loop: Any, *, all_orders: bool = True
) -> list[bytes | memoryview]:
    compute = BatchComputer(backend, Metrics(), head_chunk_rows=16)
    jobs = _jobs(loop, backend.describe().vocabulary_size)
    alone = [_bytes(compute, [job])[0] for job in jobs]
    shuffled = [n * 7 % 12 for n in range(12)]
    for order in (shuffled, list(range(12)), list(range(12))[::-1])[: 3 if all_orders else 1]:
        for batch in (order, order[:5], order[5:], order[::3])[: 4 if all_orders else 1]:
            assert _bytes(compute, [jobs[n] for n in batch]) == [alone[n] for n in batch]
    return alone


@pytest.mark.filterwarnings("ignore")  # what architectures say about kernels that are not installed here
@pytest.mark.parametrize("pass_tokens", [1, 96])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt", "gpt2", "phi", "mixtral", "mamba"])
def test_only_the_request_counts(architecture: str, pass_tokens: int, loop: asyncio.AbstractEventLoop) -> None:
    model = tiny_model(architecture, tied=False)
    backend = TransformersBackend(model, name=architecture, pass_tokens=pass_tokens)
    _assert_only_the_request_counts(backend, loop)


def test_a_packed_document_has_the_hidden_states_that_it_has_alone() -> None:
    backend = TransformersBackend(tiny_model("llama"), name="tiny", pass_tokens=1)
    documents = [_ids(length, VOCABULARY_SIZE, length) for length in (7, 1, 40, 13)]
    alone = [backend.forward([Sequence(ids, positions=All())]).rows[0] for ids in documents]
    packed = Sequence(sum(documents, ()), tuple(map(len, documents)), All())
    (rows,) = backend.forward([packed]).rows
    assert torch.equal(rows, torch.cat(alone))
    last = Sequence(
        packed.token_ids, packed.segment_lengths, Explicit(tuple(n - 1 for n in accumulate(map(len, documents))))
    )
    (rows,) = backend.forward([last]).rows
    assert torch.equal(rows, torch.cat([one[-1:] for one in alone]))


def test_experts_run_one_document_a_pass() -> None:
    def shapes(architecture: str) -> str:
        return TransformersBackend(tiny_model(architecture), name="tiny", pass_tokens=96).describe().shapes

    assert "pass_tokens=1," in shapes("mixtral")
    assert "pass_tokens=96," in shapes("llama")


@pytest.mark.real_weights
def test_a_real_model_gives_the_same_bytes_in_any_batch_and_after_a_restart(loop: asyncio.AbstractEventLoop) -> None:
    settings = TeacherSettings(model="smollm2", dtype="float32", mode="deterministic")
    backend = open_backend(settings)
    payloads = _assert_only_the_request_counts(backend, loop, all_orders=False)
    again = _in_another_process(torch.get_num_threads())
    assert again["fingerprint"] == answers_fingerprint(backend.describe(), head_chunk_rows=16)
    assert again["payloads"] == [payload.hex() for payload in payloads]


def _in_another_process(threads: int) -> Any:
    """Ask the same in a new process, each job alone, the last first."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(root)},
        capture_output=True,
        check=True,
        timeout=200,
    )
    return json.loads(done.stdout)


def _main() -> None:
    backend = open_backend(TeacherSettings(model="smollm2", dtype="float32", mode="deterministic"))
    compute = BatchComputer(backend, Metrics(), head_chunk_rows=16)
    jobs = _jobs(asyncio.new_event_loop(), backend.describe().vocabulary_size)
    payloads = [_bytes(compute, [job])[0].hex() for job in reversed(jobs)][::-1]
    fingerprint = answers_fingerprint(backend.describe(), head_chunk_rows=16)
    sys.stdout.write(json.dumps({"fingerprint": fingerprint, "payloads": payloads}))


if __name__ == "__main__":
    _main()
