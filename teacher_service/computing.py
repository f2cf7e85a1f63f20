"""A batch of jobs -> payload bytes: the forward pass, then head, encoding and codec by row chunks.

Runs in the model's thread. No more of `[positions, vocabulary]` exists at once than one chunk, or what the encoding
itself keeps of it. Knows nothing of queues, caches or transports. Shapes: P positions, V vocabulary, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.errors import StillhouseError, TeacherError, TeacherInternalError
from teacher_service.backends import TeacherBackend
from teacher_service.batching import Computed, Job, Outcome
from teacher_service.metrics import Metrics
from teacher_service.runs import runs_within

logger = structlog.get_logger(__name__)


class BatchComputer:
    """Computes batches with one backend."""

    def __init__(self, backend: TeacherBackend, metrics: Metrics, *, head_chunk_rows: int) -> None:
        self._backend = backend
        self._metrics = metrics
        self._head_chunk_rows = head_chunk_rows

    @torch.inference_mode()
    def __call__(self, jobs: SequenceOf[Job]) -> list[Outcome]:
        """Run one batch: one outcome for each job, in order."""
        started = time.monotonic()
        queued = [started - job.enqueued_at for job in jobs]
        hidden = self._backend.forward([job.sequence for job in jobs])
        watch = _Watch(time.monotonic() - started)
        encoded: list[bytes | Exception] = []
        for group in runs_within([len(rows) for rows in hidden.rows], self._head_chunk_rows):
            chunks = self._head_chunks(hidden.rows[group], watch)
            encoded += [_encode(job, part) for job, part in zip(jobs[group], chunks, strict=True)]
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
        watch.seconds += time.monotonic() - started
        return logits


@dataclass(slots=True)
class _Watch:
    """Adds up the time in the model, whose head runs while its answers are being encoded."""

    seconds: float


def _encode(job: Job, row_chunks: Iterator[Tensor]) -> bytes | Exception:
    """Encode one answer; its failure is its own and leaves the others of its batch alone."""
    try:
        payload = encode_logits(
            row_chunks,
            job.encoding,
            sequence=job.sequence,
            temperature=job.temperature,
            vocabulary_size=job.vocabulary_size,
        )
        return encode_payload(payload)
    except TeacherError as error:
        return error
    except (StillhouseError, ValueError):
        logger.exception("encode_failed")
        return TeacherInternalError("the teacher failed to encode this answer; its log says more")
