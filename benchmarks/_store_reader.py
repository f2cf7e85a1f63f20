"""A process that opens a store and reads samples of it at random: how long, and how much memory, it takes.

    python -m benchmarks._store_reader FOLDER READS SEED

prints one line of JSON. A process of its own, since memory that another part of a benchmark took never goes back.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import OrderedDict
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.store import Store, open_store
from stillhouse.store.open_shards import MAX_OPEN_SHARDS
from stillhouse.store.shard import shard_name

ROUND = 50
"""Samples that ours and the plain reader each read before the other's turn."""


class PlainReads:
    """What pyarrow alone does: the row group in which a sample lies, of a mapped file whose footer is kept."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self._plan = store.manifest.plan
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def read(self, index: int) -> int:
        """Return the rows of the row group that holds a sample."""
        number, at = divmod(index, self._plan.samples_per_shard)
        if number not in self._open:
            self._open[number] = pq.ParquetFile(
                pa.memory_map(str(self._folder / shard_name("train", number))), page_checksum_verification=True
            )
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        table = self._open[number].read_row_group(at // self._plan.samples_per_group, use_threads=False)
        return int(table.num_rows)


def main() -> None:
    """Measure, and print."""
    folder, reads, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    store = open_store(folder)
    opened_seconds = time.perf_counter() - began
    plain = PlainReads(folder, store)
    generator = random.Random(seed)  # noqa: S311 - which samples are read is no secret
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(max(1, reads // ROUND)):
        # Each its own samples, so that none finds what the other has just had decoded or paged in.
        for name in ("ours", "plain") if turn % 2 else ("plain", "ours"):
            indices = [generator.randrange(len(store)) for _ in range(ROUND)]
            began = time.perf_counter()
            if name == "ours":
                for index in indices:
                    assert store[index].payload.num_positions
            else:
                for index in indices:
                    assert plain.read(index)
            seconds[name].append((time.perf_counter() - began) / ROUND)
    result = {
        "samples": len(store),
        "shards": len(store.manifest.shards["train"]),
        "open_seconds": opened_seconds,
        "imported_mb": before / 1e6,
        "resident_mb": process.memory_info().rss / 1e6,
        "read_ms": 1e3 * statistics.median(seconds["ours"]),
        "plain_read_ms": 1e3 * statistics.median(seconds["plain"]),
        "read_over_plain": statistics.median(a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
