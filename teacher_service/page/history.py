"""The last ten minutes of a service, sampled from its own metrics, so that a page shows what was before it was opened.

Knows nothing of pages.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client import Counter, Gauge

from teacher_service.metrics import Metrics

SAMPLE_SECONDS = 5.0
_SAMPLES = 121

# What asks the teacher something; health, metrics and the page itself are no load.
_ASKING = frozenset({"ComputeLogits", "StreamLogits", "POST /v1/logits", "POST /page/distribution"})
_COMPUTED = frozenset({"miss", "corrupt", "error", "refresh", "bypass"})


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one time. `when` is monotonic, in seconds."""

    when: float
    requests: float
    tokens: float
    hits: float
    computed: float
    shed: float
    queue_size: float
    in_flight: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two samples, each second; `when` is in seconds before now, at most 0."""

    when: float
    requests: float
    tokens: float
    hits: float
    computed: float
    queue_size: float
    in_flight: float


class History:
    """The samples of one service; for one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._samples: deque[Sample] = deque([self._sample()], maxlen=_SAMPLES)

    async def keep(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.sample()

    def sample(self) -> None:
        """Take one sample."""
        self._samples.append(self._sample())

    def rates(self) -> list[Rates]:
        """Return what happened from sample to sample, the newest last."""
        now = time.monotonic()
        return [_rates(before, after, now) for before, after in pairwise(self._samples) if after.when > before.when]

    def over(self, seconds: float) -> Sample:
        """Return what was counted within the last so many seconds, as differences; gauges as they are."""
        last = self._sample()
        first = next((one for one in self._samples if one.when >= last.when - seconds), self._samples[-1])
        return Sample(
            when=max(last.when - first.when, 1e-9),
            requests=last.requests - first.requests,
            tokens=last.tokens - first.tokens,
            hits=last.hits - first.hits,
            computed=last.computed - first.computed,
            shed=last.shed - first.shed,
            queue_size=last.queue_size,
            in_flight=last.in_flight,
        )

    def _sample(self) -> Sample:
        metrics = self._metrics
        return Sample(
            when=time.monotonic(),
            requests=total(metrics, metrics.requests, "method", _ASKING),
            tokens=total(metrics, metrics.forward_tokens),
            hits=total(metrics, metrics.cache_requests, "result", frozenset({"hit"})),
            computed=total(metrics, metrics.cache_requests, "result", _COMPUTED),
            shed=total(metrics, metrics.shed),
            queue_size=total(metrics, metrics.queue_size),
            in_flight=total(metrics, metrics.requests_in_flight),
        )


def _rates(before: Sample, after: Sample, now: float) -> Rates:
    seconds = after.when - before.when
    return Rates(
        when=after.when - now,
        requests=(after.requests - before.requests) / seconds,
        tokens=(after.tokens - before.tokens) / seconds,
        hits=(after.hits - before.hits) / seconds,
        computed=(after.computed - before.computed) / seconds,
        queue_size=after.queue_size,
        in_flight=after.in_flight,
    )


def total(
    metrics: Metrics, metric: Counter | Gauge, label: str | None = None, wanted: frozenset[str] = frozenset()
) -> float:
    """Return a metric's value over all of its labels, or those that are wanted."""
    return sum(
        sample.value
        for family in metrics.families(metric)
        for sample in family.samples
        if not sample.name.endswith("_created") and (label is None or sample.labels.get(label) in wanted)
    )
