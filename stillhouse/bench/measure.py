"""What a load measured, in memory that does not grow with it: quantiles from a histogram, counts, first messages.

Knows nothing of who asks.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import numpy as np

from stillhouse.bench.workload import Asked
from stillhouse.codec import encode_payload
from stillhouse.providers import Answer

# Buckets of 1% each from a microsecond to a day: 2,532 of them.
_LEAST_SECONDS = 1e-6
_STEP = math.log(1.01)
_BUCKETS = math.ceil(math.log(86_400 / _LEAST_SECONDS) / _STEP)

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

# Digests of answers that may be asked for again; more than the workload remembers, since some are still under way.
_MOST_DIGESTS = 4096


class Times:
    """Seconds, of which quantiles are known to 1% and mean and maximum exactly."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS + 1, dtype=np.int64)
        self._sum = self._max = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        above = math.log(max(seconds, _LEAST_SECONDS) / _LEAST_SECONDS)
        self._counts[min(math.ceil(above / _STEP), _BUCKETS)] += 1
        self._sum += seconds
        self._max = max(self._max, seconds)

    def summary(self) -> dict[str, float]:
        """Return mean, quantiles and maximum in seconds; empty where there are none."""
        total = int(self._counts.sum())
        if not total:
            return {}
        reached = np.cumsum(self._counts)
        found = {
            name: min(_LEAST_SECONDS * math.exp(_STEP * int(np.searchsorted(reached, share * total))), self._max)
            for name, share in QUANTILES.items()
        }
        return {"mean": self._sum / total, **found, "max": self._max}


@dataclass(slots=True)
class Totals:
    """The counts of one encoding, or of all."""

    latency: Times = field(default_factory=Times)
    requests: int = 0
    sequences: int = 0
    tokens: int = 0
    positions: int = 0
    payload_bytes: int = 0
    cache_hits: int = 0

    def add(self, asked: Asked, answer: Answer, seconds: float) -> None:
        """Count one answered request."""
        self.latency.add(seconds)
        self.requests += 1
        self.sequences += len(asked.request.sequences)
        self.tokens += asked.request.num_tokens
        self.positions += asked.request.num_positions
        self.payload_bytes += answer.num_bytes
        self.cache_hits += answer.cache_hits


class Recorder:
    """Takes what happened to each request of a load."""

    def __init__(self, *, verify: bool) -> None:
        self.all = Totals()
        self.by_encoding: dict[str, Totals] = {}
        self.server = {"queue": Times(), "compute": Times(), "encode": Times()}
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        self.repeats = 0
        self.not_sent = 0
        self.compared = 0
        self.different = 0
        self._digests: OrderedDict[int, bytes] | None = OrderedDict() if verify else None

    def answered(self, asked: Asked, answer: Answer, seconds: float) -> None:
        """Count an answer; with `verify`, compare it with the earlier one to the same request."""
        for totals in (self.all, self.by_encoding.setdefault(asked.label, Totals())):
            totals.add(asked, answer, seconds)
        self.repeats += asked.is_repeat
        for name, times in self.server.items():
            times.add(getattr(answer, f"{name}_seconds"))
        if self._digests is not None:
            self._compare(self._digests, asked.number, answer)

    def failed(self, error: BaseException) -> None:
        """Count a request that ended in an error, and keep the first message of each class."""
        name = type(error).__name__
        self.errors[name] += 1
        self.messages.setdefault(name, str(error))

    def _compare(self, digests: OrderedDict[int, bytes], number: int, answer: Answer) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for payload in answer.payloads:
            digest.update(encode_payload(payload))
        known = digests.get(number)
        if known is not None:
            self.compared += 1
            self.different += known != digest.digest()
            return
        digests[number] = digest.digest()
        if len(digests) > _MOST_DIGESTS:
            digests.popitem(last=False)
