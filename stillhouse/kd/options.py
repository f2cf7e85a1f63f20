"""How loss and teacher are read, checked once for every row of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.errors import InvalidRequestError
from stillhouse.kd import checks
from stillhouse.kd.divergences import Divergence, DivergenceName
from stillhouse.kd.teacher import TopKTail
from stillhouse.payloads import OutputHead


@dataclass(frozen=True, slots=True)
class Options:
    """How loss and teacher are read; the same for every row of a batch."""

    temperature: float
    alpha: float
    vocabulary_size: int | None = None
    output_head: OutputHead | None = None
    top_k_tail: TopKTail = "bucket"
    loss: DivergenceName = "forward_kl"
    jsd_beta: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", checks.check_temperature(self.temperature))
        object.__setattr__(self, "alpha", checks.check_alpha(self.alpha))
        checks.check_vocabulary_size(self.vocabulary_size)
        _ = self.divergence  # checks itself
        if self.top_k_tail not in ("bucket", "renormalise"):
            raise InvalidRequestError(f"top_k_tail must be bucket or renormalise; got {self.top_k_tail!r}")
        if not isinstance(self.output_head, OutputHead | None):
            raise InvalidRequestError(
                f"output_head must be an OutputHead, as the teacher's output_head() gives it; "
                f"got {type(self.output_head).__name__}"
            )

    @property
    def divergence(self) -> Divergence:
        """What `1 - alpha` weighs."""
        return Divergence(self.loss, self.jsd_beta)
