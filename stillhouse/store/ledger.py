"""What a writer has said of its complete shards: a line for each, so that the next process need not read them over."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from stillhouse.data.dataset import PartName
from stillhouse.store.files import writing
from stillhouse.store.manifest import Shard


class Ledger:
    """A file of lines; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, part: PartName, number: int, shard: Shard) -> None:
        """Add a line, and see it to the disk.

        Raises:
            StoreError: it cannot be written.
        """
        line = json.dumps([part, number, shard.model_dump()]) + "\n"
        with writing(self._path), self._path.open("a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[tuple[PartName, int], Shard]:
        """Return what the lines say."""
        known: dict[tuple[PartName, int], Shard] = {}
        with suppress(FileNotFoundError):
            for line in self._path.read_bytes().splitlines():
                # A line that was cut off is one that is missing: the shard is read over.
                with suppress(ValueError, TypeError):
                    name, number, values = json.loads(line)
                    known[name, number] = Shard.model_validate(values)
        return known
