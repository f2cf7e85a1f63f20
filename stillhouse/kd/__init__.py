"""What is learnt from a teacher: the distillation loss, its exact gradient, and one step of it.

`loss` has the mathematics' edges (labels, masks, denominators), `rows` the arithmetic, `teacher` the forms that an
answer comes in, `step` the two protocols, `batch` a transformers batch. `alpha` weighs cross-entropy and
`1 - alpha` weighs KL, everywhere: other tools use the opposite.
"""

from stillhouse.kd.api import cross_entropy_and_gradient, kd_logit_gradient, kd_loss, kd_loss_and_gradient
from stillhouse.kd.batch import causal_lm_kd_loss
from stillhouse.kd.head import head_kd_loss
from stillhouse.kd.loss import LossAndGradient
from stillhouse.kd.rows import NO_LABEL
from stillhouse.kd.step import kd_step, kd_step_per_position

__all__ = [
    "NO_LABEL",
    "LossAndGradient",
    "causal_lm_kd_loss",
    "cross_entropy_and_gradient",
    "head_kd_loss",
    "kd_logit_gradient",
    "kd_loss",
    "kd_loss_and_gradient",
    "kd_step",
    "kd_step_per_position",
]
