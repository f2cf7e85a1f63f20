"""What a benchmark answers with, and how it is written down."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

Value = str | int | float | None


def machine() -> dict[str, Value]:
    """Return what the numbers depend on and a reader would ask for."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@dataclass(frozen=True, slots=True)
class Result:
    """`rows` is the whole table, one flat object a row; `figures` the headline ratios."""

    name: str
    rounds: int
    rows: list[dict[str, Value]]
    figures: dict[str, float]
    machine: dict[str, Value] = field(default_factory=machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, object]:
        """Return the object that the JSON file holds: `name`, `machine`, `date`, `rounds`, `rows`, `figures`."""
        values = asdict(self)
        return {key: values[key] for key in ("name", "machine", "date", "rounds", "rows", "figures")}
