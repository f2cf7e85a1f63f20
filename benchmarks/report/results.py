"""What the benchmarks wrote, a file each; those with peers, and those of a GPU, have folders of their own below."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._result import Result, Value

PEERS = "peers"
GPU = "gpu"
"""What was measured on a machine with a GPU: `python -m benchmarks run NAME --results benchmarks/results/gpu` there."""
FOLDER = Path(__file__).parent.parent / "results"


class MissingResultError(Exception):
    """A result that a page needs is not there."""


@dataclass(frozen=True, slots=True)
class Results:
    """Reads what is in a folder."""

    folder: Path = FOLDER

    def of(self, name: str) -> Result:
        """Return a benchmark's result, the one in which peers took part where there is one.

        Raises:
            MissingResultError: there is none.
        """
        for place in (self.folder / PEERS, self.folder):
            file = place / f"{name}.json"
            if file.exists():
                content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return Result(**content)
        raise MissingResultError(f"{self.folder} has no {name}.json: run `make bench`")

    def on_gpu(self) -> Results:
        """Return those of a machine with a GPU."""
        return Results(self.folder / GPU)

    def has_peers(self, name: str) -> bool:
        """Return whether peers took part in what `of` returns."""
        return (self.folder / PEERS / f"{name}.json").exists()

    def rows(self, name: str, **where: Value) -> list[dict[str, Value]]:
        """Return the rows of a benchmark's table that have these values."""
        found = [row for row in self.of(name).rows if all(row.get(key) == value for key, value in where.items())]
        if not found:
            raise MissingResultError(f"{name} has no row where {where}")
        return found


def save(result: Result, folder: Path) -> None:
    """Write a result into a folder, under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.to_json(), indent=1)
    (folder / f"{result.name}.json").write_text(text + "\n", encoding="utf-8")
