"""What the student says now: a few beginnings of the training text, continued, for whoever looks at the page.

Said by the trainer's own thread, between two steps, and only while somebody looks: after an evaluation, and once when
the page is first opened. Greedy, so that no generator is touched, and bounded in time, since other workers may wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch

from stillhouse.data import Sample
from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.students.base import Student

BUDGET_SECONDS = 1.0
"""A third of what a lighthouse waits for a worker that is late."""

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 12, 24
WATCHED_SECONDS = 120.0
"""So long after somebody has looked, the student is still heard after each evaluation."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """One continuation, after so many steps; `written` is what the text itself went on with."""

    step: int
    prompt: str
    text: str
    written: str


class Voice(Callback):
    """Lets the student speak when somebody listens.

    Args:
        student: as it trains.
        samples: gives some of the training text.
        decode: ids to text.
    """

    def __init__(
        self, student: Student, samples: Callable[[], Sequence[Sample]], decode: Callable[[list[int]], str]
    ) -> None:
        self._student = student
        self._samples = samples
        self._decode = decode
        self._wanted = threading.Event()
        self._seen = -WATCHED_SECONDS
        self._beginnings: list[tuple[list[int], list[int]]] | None = None
        self.said: list[Said] = []

    def listen(self, *, now: bool = False) -> None:
        """Note that somebody looks; `now` asks for words after the step under way. From any thread."""
        self._seen = time.monotonic()
        if now or not self.said:
            self._wanted.set()

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Speak if that was asked for."""
        del step
        if self._wanted.is_set():
            self._speak(run.step)

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Speak while somebody listens."""
        del evaluation
        if time.monotonic() - self._seen < WATCHED_SECONDS:
            self._speak(run.step)

    def _speak(self, step: int) -> None:
        self._wanted.clear()
        try:
            self.said = self._continuations(step)
        except Exception as error:  # noqa: BLE001 - a page must not end a run
            _log.warning("student_not_heard", reason=f"{type(error).__name__}: {error}")

    @torch.no_grad()
    def _continuations(self, step: int) -> list[Said]:
        if self._beginnings is None:
            self._beginnings = [_split(sample) for sample in self._samples()[:PROMPTS]]
        module = self._student.module
        was_training, deadline = module.training, time.monotonic() + BUDGET_SECONDS
        rows = [list(prompt) for prompt, _ in self._beginnings]
        try:
            for _ in range(NEW_TOKENS):
                if time.monotonic() > deadline:
                    break
                chosen = self._student.compute_logits(rows).argmax(-1).tolist()
                for row, one in zip(rows, chosen, strict=True):
                    row.append(one)
        finally:
            module.train(was_training)
        return [
            Said(step, self._decode(prompt), self._decode(row[len(prompt) :]), self._decode(written))
            for (prompt, written), row in zip(self._beginnings, rows, strict=True)
        ]


def _split(sample: Sample) -> tuple[list[int], list[int]]:
    """Return the beginning of a sample's first document, and what follows it."""
    length = sample.segment_lengths[0] if sample.segment_lengths else len(sample.token_ids)
    cut = max(1, min(PROMPT_TOKENS, length // 2))
    ids = [int(one) for one in sample.token_ids[: min(length, cut + NEW_TOKENS)]]
    return ids[:cut], ids[cut:]


def decoder_of(student: Student) -> Callable[[list[int]], str]:
    """Return what reads ids: the student's tokenizer, or their numbers where it has none."""
    tokenizer = getattr(student, "tokenizer", None)
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))
