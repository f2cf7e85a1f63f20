"""Says, once a run, how much of the teacher's distribution its answers name, when that is little.

Knows nothing of training: it looks at payloads as they pass.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import structlog

from stillhouse.payloads import CandidateLogits, Payload, TopKLogits

LOW_MASS = 0.8
"""At T = 1 the 12 largest of SmolLM2's logits hold 0.78 on average; at T = 2 the 256 largest hold 0.37."""

_log = structlog.get_logger(__name__)


class KeptMass:
    """Watches the first answers of a run."""

    def __init__(self) -> None:
        self._seen = False

    def see(self, payloads: SequenceOf[Payload]) -> None:
        """Look at a step's answers; all but the first that name ids are passed over."""
        sparse = [payload for payload in payloads if isinstance(payload, TopKLogits | CandidateLogits)]
        rows = sum(payload.num_positions for payload in sparse)
        if self._seen or rows == 0:
            return
        self._seen = True
        tail = sum(float(payload.tempered_log_tail_mass.double().exp().sum()) for payload in sparse)
        if 1 - tail / rows < LOW_MASS:
            _log.warning(
                "answers_keep_little",
                kept_mass=round(1 - tail / rows, 3),
                temperature=sparse[0].temperature,
                positions=rows,
                reason="the ids that the answers name hold this share of the teacher's distribution at the run's "
                "temperature; of all others only the sum is learnt",
                remedy="--encoding auto, a larger k, or temperature 1",
            )
