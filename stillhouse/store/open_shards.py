"""The open shards of a store and their decoded row groups, within bounds: where a sample lies, and its columns.

Safe for threads; a process that was forked opens the files anew. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import pyarrow as pa

from stillhouse.data.dataset import PartName
from stillhouse.errors import StoreError
from stillhouse.store.columns import Columns
from stillhouse.store.files import StoreFiles
from stillhouse.store.manifest import Manifest, Shard
from stillhouse.store.recent import Recent
from stillhouse.store.shard import ShardReader, shard_name, shard_schema

MAX_OPEN_SHARDS: Final = 64
"""Each holds its footer, some hundred KB, and a file handle."""

MAX_GROUP_BYTES: Final = 32 * 2**20
"""Of decoded row groups, besides the one that is read."""


class OpenShards:
    """Open shards and decoded row groups, the last used of each."""

    def __init__(self, files: StoreFiles, manifest: Manifest) -> None:
        self._files = files
        self._manifest = manifest
        self._plan = manifest.plan
        self._first = {name: self._plan.shards_of(name, manifest.share).start for name in self._plan.parts}
        self._schema = shard_schema(self._plan)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._open: Recent[ShardReader] = Recent(MAX_OPEN_SHARDS, lambda _: 1, _close)
        self._groups: Recent[Columns] = Recent(MAX_GROUP_BYTES, lambda columns: columns.num_bytes)

    def columns(self, part: PartName, index: int, names: tuple[str, ...]) -> tuple[Columns, int]:
        """Return decoded columns of the row group that holds a sample, and the sample's row among them."""
        number, at = divmod(index, self._plan.samples_per_shard)
        group, row = divmod(at, self._plan.samples_per_group)
        if self._pid != os.getpid():
            self._begin()  # Threads and open files of the process that this one was forked from.
        key = part, number, group, names
        with self._mutex:
            columns = self._groups.get(key)
            if columns is None:
                try:
                    columns = self._reader(part, number).group(group, names)
                except (OSError, pa.ArrowException, ValueError, KeyError, IndexError) as error:
                    self._open.drop((part, number))
                    raise self._unreadable(part, number, error) from error
                self._groups.put(key, columns)
        try:
            found = columns.sample_index(row)
        except IndexError as error:
            raise self._unreadable(part, number, "it holds too few rows") from error
        if found != index:
            raise self._unreadable(part, number, f"it has sample {found} in the place of {index}")
        return columns, row

    def batches(self, part: PartName, number: int) -> Iterator[pa.RecordBatch]:
        """Yield the row groups of one shard."""
        try:
            with self._mutex:
                reader = self._reader(part, number)
            for group in range(reader.num_groups):
                with self._mutex:
                    reader = self._reader(part, number)
                    batch = reader.batch(group, self._schema.names)
                yield batch
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._unreadable(part, number, error) from error

    def _reader(self, part: PartName, number: int) -> ShardReader:
        reader = self._open.get((part, number))
        if reader is None:
            name = shard_name(part, number)
            entry: Shard = self._manifest.shards[part][number - self._first[part]]
            size = self._files.size(name)
            if size != entry.bytes:
                raise OSError(f"it has {size} bytes, where the manifest says {entry.bytes}")
            reader = ShardReader(self._files.source(name), self._plan, part)
            if reader.num_samples != entry.samples:
                raise OSError(f"it has {reader.num_samples} samples, where the manifest says {entry.samples}")
            self._open.put((part, number), reader)
        return reader

    def _unreadable(self, part: PartName, number: int, error: Exception | str) -> StoreError:
        name = shard_name(part, number)
        what = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        return StoreError(
            f"{self._files.name}: the shard {name} cannot be read: {what}; copy it again, or capture it again. "
            "`stillhouse store verify` finds every such shard"
        )

    def close(self) -> None:
        """Close all of them."""
        with self._mutex:
            self._open.clear()
            self._groups.clear()


def _close(reader: ShardReader) -> None:
    with suppress(OSError, pa.ArrowException):
        reader.close()
