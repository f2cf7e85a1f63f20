"""What fronts have counted, added to what the engine counts itself: one service, one set of figures.

A front tells all of its samples; the engine keeps the latest of each and adds them where its own metrics are read. What
a front that died had counted stays counted; what it held is held no more. Knows nothing of sockets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from teacher_service.fronts.frames import FrameError
from teacher_service.metrics import Metrics
from teacher_service.request_notes import RequestNote

SUMMED_GAUGES: Final = frozenset({
    "teacher_requests_in_flight", "teacher_held_bytes", "teacher_queue_size", "teacher_queue_tokens",
    "teacher_caller_requests",
})  # fmt: skip
LARGEST_GAUGES: Final = frozenset({"teacher_cache_paused"})
"""1 for the service while it is 1 anywhere."""
OWN: Final = frozenset({"teacher_token_reloads", "teacher_certificate_reloads"})
"""The engine reads the same files: a change is counted once."""

_Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Of a family, a sample and its labels."""
_Values = dict[_Key, float]


def tell_samples(metrics: Metrics, slowest: Iterable[RequestNote]) -> bytes:
    """Return all that a front has counted, and its slowest requests."""
    families = [
        [family.name, [[one.name, one.labels, one.value] for one in family.samples]]
        for metric in vars(metrics).values()
        if isinstance(metric, Counter | Gauge | Histogram)
        for family in metric.collect()
        if _is_told(family)
    ]
    return json.dumps({"families": families, "slowest": [asdict(note) for note in slowest]}).encode()


class Figures:
    """The figures of all fronts, living and dead; for one event loop."""

    def __init__(self) -> None:
        self._latest: dict[int, _Values] = {}
        self._slowest: dict[int, list[RequestNote]] = {}
        self._of_the_dead: _Values = {}

    def take(self, front: int, told: bytes | bytearray | memoryview) -> None:
        """Take what a front has told.

        Raises:
            FrameError: it is not what a front tells.
        """
        try:
            said: Mapping[str, Any] = json.loads(bytes(told))
            self._latest[front] = {
                (str(family), str(name), tuple(sorted(labels.items()))): float(value)
                for family, samples in said["families"]
                for name, labels, value in samples
            }
            self._slowest[front] = [RequestNote(**note) for note in said["slowest"]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FrameError("what a front says of its metrics cannot be read") from error

    def bury(self, front: int) -> None:
        """Keep what a front that has ended had counted; what it held is gone."""
        self._slowest.pop(front, None)
        for key, value in self._latest.pop(front, {}).items():
            if key[0] not in SUMMED_GAUGES | LARGEST_GAUGES:
                self._of_the_dead[key] = _joined(key, self._of_the_dead.get(key), value)

    def slowest(self) -> list[RequestNote]:
        """Return the slowest requests of the fronts that live."""
        return [note for notes in self._slowest.values() for note in notes]

    def added_to(self, family: Metric) -> Metric:
        """Return a family of the engine's with the fronts' samples added to its own."""
        if not _is_told(family):
            return family
        values: _Values = {
            (family.name, one.name, tuple(sorted(one.labels.items()))): one.value for one in family.samples
        }
        for told in (self._of_the_dead, *self._latest.values()):
            for key, value in told.items():
                if key[0] == family.name:
                    values[key] = _joined(key, values.get(key), value)
        added = Metric(family.name, family.documentation, family.type, family.unit)
        added.samples = [Sample(name, dict(labels), value) for (_, name, labels), value in values.items()]
        return added


def _is_told(family: Metric) -> bool:
    if family.type == "gauge":
        return family.name in SUMMED_GAUGES | LARGEST_GAUGES
    return family.type in ("counter", "histogram") and family.name not in OWN


def _joined(key: _Key, one: float | None, other: float) -> float:
    if one is None:
        return other
    if key[1].endswith("_created"):
        return min(one, other)
    return max(one, other) if key[0] in LARGEST_GAUGES else one + other
