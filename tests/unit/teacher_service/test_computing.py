"""A batch of jobs becomes payload bytes, each right, whatever shares the batch and however little memory there is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.codec import decode_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, TopK
from stillhouse.errors import RequestTooLongError
from stillhouse.payloads import DenseLogits, HiddenStates
from stillhouse.request import All, Last, Positions, Sequence
from teacher_service.backends import HiddenRows, TeacherBackend
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.backends.transformers import TransformersBackend
from teacher_service.batching import Computed, Job, Outcome
from teacher_service.computing import BatchComputer, answers_fingerprint
from teacher_service.device_memory import DeviceMemory, is_out_of_memory
from teacher_service.metrics import Metrics
from tests.tiny_models import VOCABULARY_SIZE, tiny_model


class Watched(TransformersBackend):
    """Counts what its head is asked for, and runs out of memory above so many tokens or head rows."""

    most_tokens = 10**9
    most_head_rows = 10**9

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        self.head_rows: list[int] = getattr(self, "head_rows", [])
        self.batches: list[int] = getattr(self, "batches", [])
        tokens = sum(len(sequence.token_ids) for sequence in sequences)
        self.batches.append(tokens)
        if tokens > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(sequences)

    def head(self, hidden_rows: Tensor) -> Tensor:
        self.head_rows.append(len(hidden_rows))
        if len(hidden_rows) > self.most_head_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().head(hidden_rows)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def _backend(pass_tokens: int | None = None) -> Watched:
    return Watched(tiny_model("llama", tied=False), name="tiny", pass_tokens=pass_tokens)


def _computer(backend: TeacherBackend, head_chunk_rows: int = 8) -> BatchComputer:
    return BatchComputer(backend, Metrics(), head_chunk_rows=head_chunk_rows)


def _job(loop: Any, length: int, encoding: Encoding, positions: Positions | None = None, seed: int = 0) -> Job:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    ids = tuple(torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator).tolist())
    sequence = Sequence(ids, positions=All() if positions is None else positions)
    return Job(sequence, encoding, 1.0, VOCABULARY_SIZE, None, loop.create_future())


def _payload(outcome: Outcome) -> bytes | memoryview:
    assert isinstance(outcome, Computed), outcome
    return outcome.payload


def _dense(outcome: Outcome) -> Tensor:
    payload = decode_payload(_payload(outcome))
    assert isinstance(payload, DenseLogits)
    return payload.logits


def _jobs(loop: Any) -> list[Job]:
    encodings: list[Encoding] = [Dense(), TopK(4), Candidates((3, 7)), Hidden("float32")]
    asked: list[Positions] = [All(), Last()]
    return [_job(loop, 3 + 5 * n, encodings[n % 4], asked[n // 4]) for n in range(8)]


def test_every_encoding_of_a_mixed_batch_is_what_it_is_alone(loop: asyncio.AbstractEventLoop) -> None:
    compute = _computer(_backend())
    jobs = _jobs(loop)
    for job, outcome in zip(jobs, compute(jobs), strict=True):
        (alone,) = compute([job])
        one, other = decode_payload(_payload(outcome)), decode_payload(_payload(alone))
        assert type(one) is type(other)
        for name in ("logits", "hidden"):
            if hasattr(one, name):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-3, rtol=0)


def test_hidden_states_run_no_head(loop: asyncio.AbstractEventLoop) -> None:
    backend = _backend()
    outcomes = _computer(backend)([_job(loop, 9, Hidden("float32")), _job(loop, 30, Hidden())])
    assert backend.head_rows == []
    states = [decode_payload(_payload(outcome)) for outcome in outcomes]
    assert all(isinstance(state, HiddenStates) for state in states)
    assert [state.num_positions for state in states] == [9, 30]


def test_the_head_never_sees_more_rows_than_a_chunk(loop: asyncio.AbstractEventLoop) -> None:
    backend = _backend()
    _computer(backend, head_chunk_rows=8)([_job(loop, length, Dense()) for length in (1, 3, 4, 5, 20, 2)])
    assert max(backend.head_rows) == 8
    assert sum(backend.head_rows) == 35


def test_a_batch_that_does_not_fit_is_halved_and_every_answer_is_right(loop: asyncio.AbstractEventLoop) -> None:
    roomy, tight = _backend(), _backend()
    tight.most_tokens = 40
    jobs = [_job(loop, length, Dense(), seed=length) for length in (5, 9, 14, 20, 26, 30)]
    metrics = Metrics()
    compute = BatchComputer(tight, metrics, head_chunk_rows=8)
    outcomes = compute(jobs)
    expected = [_computer(roomy)([job])[0] for job in jobs]
    for ours, theirs in zip(outcomes, expected, strict=True):
        torch.testing.assert_close(_dense(ours), _dense(theirs), atol=1e-3, rtol=0)
    failures = metrics.registry.get_sample_value("teacher_out_of_memory_total")
    assert failures == sum(tokens > 40 for tokens in tight.batches) > 0
    # What the next batch is held to has been seen to fit.
    assert compute.largest_fitting_tokens is not None
    assert compute.largest_fitting_tokens <= 40


def test_a_job_that_never_fits_is_refused_and_the_others_are_answered(loop: asyncio.AbstractEventLoop) -> None:
    backend = _backend()
    backend.most_tokens = 20
    jobs = [_job(loop, length, Dense()) for length in (4, 8, 50, 16)]
    outcomes = _computer(backend)(jobs)
    assert isinstance(outcomes[2], RequestTooLongError)
    assert "50 tokens" in str(outcomes[2])
    assert "head_chunk_rows" in str(outcomes[2])
    for index in (0, 1, 3):
        assert _dense(outcomes[index]).shape == (jobs[index].num_tokens, VOCABULARY_SIZE)
    assert len(backend.batches) < 2 * len(jobs) + 2


def test_memory_that_runs_out_in_the_head_halves_too(loop: asyncio.AbstractEventLoop) -> None:
    backend = _backend()
    backend.most_head_rows = 5
    jobs = [_job(loop, length, Dense(), Last(), seed=length) for length in range(3, 11)]
    outcomes = _computer(backend)(jobs)
    assert [len(_dense(outcome)) for outcome in outcomes] == [1] * 8


def test_memory_that_is_free_again_answers_a_job_that_failed_once(loop: asyncio.AbstractEventLoop) -> None:
    class Once(FixtureBackend):
        failures = 1

        def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
            self.failures, failed = 0, self.failures
            if failed:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
            return super().forward(sequences)

    (outcome,) = _computer(Once(VOCABULARY_SIZE))([_job(loop, 4, Dense())])
    assert _dense(outcome).shape == (4, VOCABULARY_SIZE)


def test_other_faults_are_not_taken_for_a_lack_of_memory(loop: asyncio.AbstractEventLoop) -> None:
    class Broken(FixtureBackend):
        def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
            raise RuntimeError(f"shapes of {len(sequences)} cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        _computer(Broken(VOCABULARY_SIZE))([_job(loop, 4, Dense())])
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_more_is_tried_again_after_many_batches_that_fit() -> None:
    memory = DeviceMemory()
    memory.failed(4096)
    memory.failed(1024)
    assert memory.fitting_tokens == 512
    for _ in range(255):
        memory.fitted()
    assert memory.fitting_tokens == 512
    for _ in range(256 * 3 + 1):
        memory.fitted()
    assert memory.fitting_tokens is None


@pytest.mark.parametrize("pass_tokens", [1, 64])
def test_deterministic_bytes_do_not_depend_on_the_batch(loop: asyncio.AbstractEventLoop, pass_tokens: int) -> None:
    compute = _computer(_backend(pass_tokens), head_chunk_rows=7)
    jobs = _jobs(loop)
    alone = [_payload(compute([job])[0]) for job in jobs]
    assert [_payload(outcome) for outcome in compute(jobs)] == alone
    assert [_payload(outcome) for outcome in compute(jobs[::-1])] == alone[::-1]
    assert [_payload(outcome) for outcome in compute(jobs[::2])] == alone[::2]


def test_how_the_head_is_run_is_part_of_a_deterministic_fingerprint() -> None:
    deterministic, throughput = _backend(1).describe(), _backend().describe()
    one, other = (answers_fingerprint(deterministic, head_chunk_rows=rows) for rows in (64, 128))
    assert one != other
    assert answers_fingerprint(throughput, head_chunk_rows=64) == throughput.fingerprint
