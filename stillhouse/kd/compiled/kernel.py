"""From tensors to the compiled kernels and back: strides, dtypes, and the rows shared out among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, TopK
from stillhouse.kd.compiled.rows import dense_rows
from stillhouse.kd.compiled.top_k import top_k_rows
from stillhouse.kd.compiled.vectors import ONE_T, temper_of
from stillhouse.kd.rows import DenseRows, RowTerms, RowWeights, SampledRows, TeacherRows, TopKRows, expected_draw

CHUNK_ELEMENTS = 2**23
"""Logits of a chunk: what is not float32 is widened a chunk at a time, in 32 MiB for each side and the gradient."""

LEAST_ELEMENTS_OF_A_THREAD = 2**17
"""Logits for which a thread is worth its start, some 0.2 ms of work."""

PIECES_OF_A_THREAD = 4
"""Into how many calls a thread's share is cut: one whose core is busy with something else leaves some to the others."""

_NOTHING = np.empty(0, np.float32)


class CompiledKernel:
    """The fused loss and gradient of float32 rows on CPU: the forward KL, or cross-entropy alone.

    It keeps to what `RowKernel` promises. Its bits differ from that one's, and do not depend on the number of threads.
    """

    def __init__(self, width: int, *, temperature: float, weights: RowWeights) -> None:
        self.max_rows = max(1, CHUNK_ELEMENTS // max(1, width))
        self._width = width
        self._temper = temper_of(temperature)
        self._inverse_temperature = np.float32(1 / temperature)
        self._weights = weights
        self._buffers: dict[str, Tensor] = {}

    def run(self, student: Tensor, teacher: TeacherRows | None, labels: Tensor, gradient: Tensor | None) -> RowTerms:
        """Return the terms of one chunk, float64, and write its gradient: see `RowKernel.run`."""
        student = self._wide(student, "student")
        target = gradient if gradient is None or _is_flat(gradient) else self._buffer("gradient", len(gradient))
        terms = np.zeros((len(student), 4))
        shared = (
            labels.contiguous().numpy(),
            self._width,
        )
        after = (
            self._inverse_temperature,
            self._weights.cross_entropy,
            0.0 if teacher is None else self._weights.kl,
            *((_NOTHING, 0) if target is None else _flat(target)),
            terms,
        )
        match teacher:
            case DenseRows(logits):
                run = dense_rows(True, self._temper)
                sides: tuple[Any, ...] = (*_flat(student), *_flat(self._wide(logits, "teacher")))
            case TopKRows():
                run = top_k_rows(self._temper != ONE_T)
                sides = (*_flat(student), *_head(teacher))
            case _:
                run = dense_rows(False, self._temper)
                sides = (*_flat(student), _NOTHING, 0)
        self._over_rows(lambda first, last: run(*sides, *shared, first, last, *after), len(student))
        cross_entropy, kl, student_normalizer, teacher_normalizer = torch.from_numpy(terms).unbind(1)
        if isinstance(teacher, SampledRows):
            kl = self._from_draws(student, teacher, kl, target)
        elif teacher is None:
            kl = torch.zeros_like(kl)
        if gradient is not None and target is not None and target is not gradient:
            gradient.copy_(target)
        return RowTerms(cross_entropy, kl, student_normalizer, teacher_normalizer)

    def _from_draws(self, student: Tensor, teacher: SampledRows, normalizer: Tensor, target: Tensor | None) -> Tensor:
        """Return the estimate of KL from draws, `log Z - sum(w x) - H`, and take the draws off the gradient."""
        drawn = student.gather(1, teacher.token_ids).double() * float(self._inverse_temperature)
        expected = expected_draw(teacher.weights.double(), drawn)[:, 0]
        if target is not None:
            target.scatter_add_(1, teacher.token_ids, teacher.weights * -self._weights.kl)
        return normalizer - expected - teacher.entropy[:, 0].double()

    def _over_rows(self, work: Callable[[int, int], None], rows: int) -> None:
        """Do some work on all rows, a few at a time, on as many threads as torch has and the work is worth."""
        threads = min(torch.get_num_threads(), rows, max(1, rows * self._width // LEAST_ELEMENTS_OF_A_THREAD))
        if threads == 1:
            work(0, rows)
            return
        size = -(-rows // (threads * PIECES_OF_A_THREAD))
        starts = iter(range(0, rows, size))

        def take_pieces() -> None:
            for start in starts:  # each piece goes to one thread: the step of an iterator of a range is atomic
                work(start, min(start + size, rows))

        # Made anew for each chunk, which costs 0.1 ms: threads that wait between two would be lost in a forked process.
        with ThreadPoolExecutor(threads - 1, "stillhouse-kd") as pool:
            others = [pool.submit(take_pieces) for _ in range(threads - 1)]
            take_pieces()
            for other in others:
                other.result()

    def _wide(self, logits: Tensor, name: str) -> Tensor:
        return logits if _is_flat(logits) else self._buffer(name, len(logits)).copy_(logits)

    def _buffer(self, name: str, rows: int) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self.max_rows, self._width, dtype=torch.float32)
        return self._buffers[name][:rows]


def compile_for(encoding: Encoding | None, temperature: float) -> None:
    """Compile the loop over rows that a loss over such answers takes; None: over labels alone."""
    temper = temper_of(temperature)
    match encoding:
        case TopK() | Candidates():
            top_k_rows(temper != ONE_T)
        case Dense() | Hidden():
            dense_rows(True, temper)
        case _:
            dense_rows(False, temper)


def _is_flat(rows: Tensor) -> bool:
    """Whether rows are float32 with the logits of each side by side."""
    return rows.dtype == torch.float32 and (rows.stride(1) == 1 or rows.shape[1] == 1)


def _flat(rows: Tensor) -> tuple[NDArray[np.float32], int]:
    """Return rows as one array, without a copy, and the distance from one row to the next."""
    length = (len(rows) - 1) * rows.stride(0) + rows.shape[1]
    return rows.as_strided((length,), (1,)).numpy(), rows.stride(0)


def _head(teacher: TopKRows) -> tuple[NDArray[Any], ...]:
    return (
        teacher.token_ids.contiguous().numpy(),
        teacher.log_probs.contiguous().numpy(),
        teacher.log_tail[:, 0].contiguous().numpy(),
    )
