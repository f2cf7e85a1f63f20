"""Which held-out evaluation is the best so far, and when there has been no better one for too long."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from student_worker.callbacks.base import Callback, RunView, Stop
from student_worker.evaluation.figures import Evaluation

MetricName = Literal["loss", "kl", "cross_entropy"]


@dataclass(frozen=True, slots=True)
class Best:
    """The evaluation with the lowest figure: after which step, and the figure."""

    step: int
    metric: str
    value: float

    def as_json(self) -> dict[str, Any]:
        """Return what best.json and result.json hold."""
        return asdict(self)


class BestSoFar(Callback):
    """Remembers the best evaluation of weights that were trained: those of step 0 have no checkpoint."""

    def __init__(self, metric: MetricName = "loss") -> None:
        self.metric = metric
        self.best: Best | None = None

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Compare; of equal ones the earlier stays."""
        value = figure(evaluation, self.metric)
        if run.step > 0 and value is not None and (self.best is None or value < self.best.value):
            self.best = Best(run.step, self.metric, value)

    def at(self, step: int) -> Best | None:
        """Return the best, if it is the evaluation of this step."""
        return self.best if self.best is not None and self.best.step == step else None

    def progress(self) -> dict[str, Any] | None:
        """Return what a resumed run or a newcomer goes on from."""
        return None if self.best is None else self.best.as_json()

    def restore(self, progress: dict[str, Any] | None) -> None:
        """Take over what `progress` returned; a figure of another name cannot be compared with."""
        self.best = Best(**progress) if progress and progress["metric"] == self.metric else None


class EarlyStopping(Callback):
    """Stops after `patience` evaluations in a row that were not lower than the best before them by `threshold`.

    The best is that of all evaluations, the untrained student's included, as in transformers' callback of this name.
    """

    def __init__(self, metric: MetricName, patience: int, threshold: float = 0.0) -> None:
        self._metric = metric
        self._patience = patience
        self._threshold = threshold
        self._best: float | None = None
        self._since = 0

    def on_train_begin(self, run: RunView) -> None:
        """A run that had seen enough when it was killed has seen enough."""
        del run
        self._check()

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Count the evaluations that are no better."""
        del run
        value = figure(evaluation, self._metric)
        if value is None:
            return
        is_better = self._best is None or value < self._best - self._threshold
        self._since = 0 if is_better else self._since + 1
        self._best = value if self._best is None else min(self._best, value)
        self._check()

    def _check(self) -> None:
        if self._since >= self._patience:
            raise Stop(
                f"early stopping: the held-out {self._metric} was not lower than {self._best} by more than "
                f"{self._threshold} in {self._since} evaluations"
            )

    def progress(self) -> dict[str, Any]:
        """Return what a resumed run or a newcomer goes on from."""
        return {"metric": self._metric, "best": self._best, "since": self._since}

    def restore(self, progress: dict[str, Any]) -> None:
        """Take over what `progress` returned; a figure of another name cannot be compared with."""
        if progress["metric"] == self._metric:
            self._best, self._since = progress["best"], progress["since"]


def figure(evaluation: Evaluation, metric: MetricName) -> float | None:
    """Return one figure of an evaluation, None where it has none."""
    value: float | None = getattr(evaluation, metric)
    return value
