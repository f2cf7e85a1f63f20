"""What the demonstration reads while it watches: the students' metrics file and the teacher's Prometheus page."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

METRICS_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TeacherCounters:
    """The teacher's counters at one moment: payloads answered by the cache or not, and tokens through the model."""

    cache_hits: float = 0.0
    cache_misses: float = 0.0
    forward_tokens: float = 0.0

    def since(self, earlier: TeacherCounters) -> TeacherCounters:
        """Return what was counted after `earlier`."""
        return TeacherCounters(
            self.cache_hits - earlier.cache_hits,
            self.cache_misses - earlier.cache_misses,
            self.forward_tokens - earlier.forward_tokens,
        )

    @property
    def hit_ratio(self) -> float:
        """Hits over look-ups; 0 where there were none."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else 0.0


def read_teacher(http_address: str) -> TeacherCounters:
    """Read the counters from the teacher's `/metrics`.

    Raises:
        OSError: the teacher does not answer.
    """
    with urllib.request.urlopen(f"{http_address}/metrics", timeout=METRICS_TIMEOUT_SECONDS) as response:  # noqa: S310 - our own loopback address
        return parse_teacher(response.read().decode())


def parse_teacher(text: str) -> TeacherCounters:
    """Read the counters from a Prometheus text page."""
    values = {"hit": 0.0, "miss": 0.0}
    forward = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "teacher_cache_requests_total" and sample.labels.get("result") in values:
                values[sample.labels["result"]] += sample.value
            elif sample.name == "teacher_forward_tokens_total":
                forward += sample.value
    return TeacherCounters(values["hit"], values["miss"], forward)


@dataclass(slots=True)
class MetricsTail:
    """Reads a growing JSON-lines file from where it stopped the last time; a line not yet whole waits."""

    path: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0

    def read(self) -> list[dict[str, Any]]:
        """Read what is new, and return the new records."""
        if not self.path.exists():
            return []
        known = len(self.records)
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self.records.append(json.loads(line))
        return self.records[known:]

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the records of one event, in order."""
        return [record for record in self.records if record.get("event") == event]
