"""A batch of jobs -> payload bytes: the forward pass, then head, encoding and codec by row chunks.

Runs in the model's thread. No more of `[positions, vocabulary]` exists at once than one chunk, or what the encoding
itself keeps of it; for HIDDEN no head is run at all. A batch that does not fit into memory is halved until it does.
Knows nothing of queues, caches or transports. Shapes: P positions, V vocabulary, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from stillhouse.codec import Draft, encode_payload
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Hidden, Sampled
from stillhouse.errors import RequestTooLongError, StillhouseError, TeacherError, TeacherInternalError
from stillhouse.fingerprint import fingerprint
from stillhouse.payload_header import Header
from stillhouse.payloads import Payload
from stillhouse.runs import runs_within
from teacher_service.backends import BackendDescription, TeacherBackend
from teacher_service.batching import Computed, Job, Outcome
from teacher_service.device_memory import DeviceMemory, is_out_of_memory, release_cached_memory
from teacher_service.metrics import Metrics

logger = structlog.get_logger(__name__)


def answers_fingerprint(description: BackendDescription, *, head_chunk_rows: int) -> str:
    """Return the fingerprint of everything that the bytes of an answer depend on.

    In deterministic mode the shape in which the head runs is a part of it; in throughput mode batches decide that.
    """
    if description.mode != "deterministic":
        return description.fingerprint
    return fingerprint("deterministic", description.fingerprint, head_chunk_rows)


class BatchComputer:
    """Computes batches with one backend.

    `memory` says how large a batch should be after one did not fit.
    """

    def __init__(self, backend: TeacherBackend, metrics: Metrics, *, head_chunk_rows: int) -> None:
        self._backend = backend
        self._metrics = metrics
        self._head_chunk_rows = head_chunk_rows
        self._shares_head_chunks = backend.describe().mode != "deterministic"
        self.memory = DeviceMemory()

    @property
    def largest_fitting_tokens(self) -> int | None:
        """The most tokens, padding included, that the next batch should have; None where none has failed."""
        return self.memory.fitting_tokens

    def __call__(self, jobs: SequenceOf[Job]) -> list[Outcome]:
        """Run one batch: one outcome for each job, in order.

        Where memory runs out, each half is run apart, and a single job once more by itself before it is refused.
        """
        outcomes: list[Outcome] = []
        parts = [(jobs, 0)]
        # Halving ends: n jobs make at most 2n - 1 parts, each tried at most twice.
        while parts:
            part, attempt = parts.pop()
            done = self._compute_if_it_fits(part)
            if done is not None:
                outcomes += done
            elif len(part) > 1:
                middle = len(part) // 2
                parts += [(part[middle:], 0), (part[:middle], 0)]
            elif attempt == 0:
                parts.append((part, 1))
            else:
                outcomes.append(_too_large(part[0]))
        return outcomes

    def _compute_if_it_fits(self, jobs: SequenceOf[Job]) -> list[Outcome] | None:
        tokens = self._backend.padded_tokens([job.num_tokens for job in jobs])
        try:
            outcomes = self._compute(jobs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._metrics.out_of_memory.inc()
            self.memory.failed(tokens)
            logger.warning(
                "out_of_memory",
                sequences=len(jobs),
                tokens=tokens,
                next_batches=self.memory.fitting_tokens,
                remedy="lower max_batch_tokens or head_chunk_rows",
            )
        else:
            self.memory.fitted()
            return outcomes
        # Only here has the error, whose traceback holds the batch's tensors, let go of them.
        release_cached_memory()
        return None

    @torch.inference_mode()
    def _compute(self, jobs: SequenceOf[Job]) -> list[Outcome]:
        started = time.monotonic()
        queued = [started - job.enqueued_at for job in jobs]
        hidden = self._backend.forward([job.sequence for job in jobs])
        _wait_for(hidden.rows[-1])
        watch = _Watch(time.monotonic() - started)
        encoded = self._encode_all(jobs, hidden.rows, watch)
        encode_seconds = time.monotonic() - started - watch.seconds
        tokens = sum(job.num_tokens for job in jobs)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.forward_tokens.inc(tokens)
        self._metrics.padding_tokens.inc(hidden.padding_tokens)
        self._metrics.compute_duration.observe(watch.seconds)
        self._metrics.encode_duration.observe(encode_seconds)
        return [
            part if isinstance(part, Exception) else Computed(part, queue_seconds, watch.seconds, encode_seconds)
            for part, queue_seconds in zip(encoded, queued, strict=True)
        ]

    def _encode_all(
        self, jobs: SequenceOf[Job], rows: SequenceOf[Tensor], watch: _Watch
    ) -> list[bytes | memoryview | Exception]:
        encoded: dict[int, bytes | memoryview | Exception] = {}
        with_logits = []
        for index, job in enumerate(jobs):
            if isinstance(job.encoding, Hidden):
                encoded[index] = _encode_hidden(job, job.encoding, rows[index])
            else:
                with_logits.append(index)
        # In deterministic mode the chunks of a job follow from it alone: its low bits would tell of its neighbours.
        most = self._head_chunk_rows if self._shares_head_chunks else 0
        for run in runs_within([len(rows[index]) for index in with_logits], most):
            group = with_logits[run]
            chunks = self._head_chunks([rows[index] for index in group], watch)
            for index, row_chunks in zip(group, chunks, strict=True):
                encoded[index] = _encode_logits(jobs[index], row_chunks)
        return [encoded[index] for index in range(len(jobs))]

    def _head_chunks(self, rows: SequenceOf[Tensor], watch: _Watch) -> Iterator[Iterator[Tensor]]:
        """Yield each sequence's logits as row chunks: those of one long sequence, or a slice of what several share."""
        if len(rows) == 1:
            yield (self._head(part, watch) for part in torch.split(rows[0], self._head_chunk_rows))
            return
        logits = self._head(torch.cat(list(rows)), watch)
        yield from (iter([part]) for part in torch.split(logits, [len(part) for part in rows]))

    def _head(self, hidden_rows: Tensor, watch: _Watch) -> Tensor:
        started = time.monotonic()
        logits = self._backend.head(hidden_rows)
        _wait_for(logits)
        watch.seconds += time.monotonic() - started
        return logits


@dataclass(slots=True)
class _Watch:
    """Adds up the time in the model, whose head runs while its answers are being encoded."""

    seconds: float


def _wait_for(result: Tensor) -> None:
    """Return when a result is there: what a GPU still computes of it would count as the time of encoding."""
    if result.is_cuda:
        torch.cuda.current_stream(result.device).synchronize()


def _encode_logits(job: Job, row_chunks: Iterable[Tensor]) -> bytes | memoryview | Exception:
    def encode(into: Payload | None) -> Payload:
        return encode_logits(
            row_chunks,
            job.encoding,
            sequence=job.sequence,
            temperature=job.temperature,
            vocabulary_size=job.vocabulary_size,
            into=into,
        )

    return _encoded(job, encode)


def _encode_hidden(job: Job, encoding: Hidden, rows: Tensor) -> bytes | memoryview | Exception:
    return _encoded(job, lambda into: encode_hidden(rows, encoding, into), hidden_size=rows.shape[-1])


def _encoded(
    job: Job, encode: Callable[[Payload | None], Payload], *, hidden_size: int = 0
) -> bytes | memoryview | Exception:
    """Encode one answer; its failure is its own and leaves the others of its batch alone."""
    try:
        if isinstance(job.encoding, Sampled):
            return encode_payload(encode(None))
        header = Header.expected(
            job.encoding,
            job.sequence,
            temperature=job.temperature,
            vocabulary_size=job.vocabulary_size,
            hidden_size=hidden_size,
        )
        draft = Draft.of(header)
        encode(draft.payload)
        return draft.seal()
    except TeacherError as error:
        return error
    except (StillhouseError, ValueError):
        logger.exception("encode_failed")
        return TeacherInternalError("the teacher failed to encode this answer; its log says more")


def _too_large(job: Job) -> RequestTooLongError:
    return RequestTooLongError(
        f"sequences: one of {job.num_tokens} tokens with {job.sequence.num_positions} positions does not fit into the "
        "memory of this teacher's device; send shorter ones, or have its operator lower head_chunk_rows, choose a "
        "narrower dtype or spread the model with device_map"
    )
