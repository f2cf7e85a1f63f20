"""One shard: a Parquet file of samples and their answers, written and read by row groups.

Row group g of a shard holds its samples from g * samples_per_group on, so that a sample is found by arithmetic alone.
The bytes follow from the samples and the plan: no time, no statistics, one writer's version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.data.dataset import PartName
from stillhouse.data.packing import Sample
from stillhouse.payloads import Payload
from stillhouse.store.columns import (
    SAMPLE_COLUMNS,
    Columns,
    payload_arrays,
    payload_schema,
    sample_arrays,
    sample_schema,
)
from stillhouse.store.manifest import FORMAT_VERSION, Shard, StorePlan

WRITER: Final = f"pyarrow {pa.__version__}"

COMPRESSION_LEVEL: Final = 3
"""Of zstd. Measured on real answers, 9 saves 3% of SAMPLED and 1% of HIDDEN, and takes twice the time."""


def shard_name(part: PartName, number: int) -> str:
    """Return the path of a shard within a store."""
    return f"{part}/{number:06d}.parquet"


def shard_schema(plan: StorePlan) -> pa.Schema:
    """Return the columns of a plan's shards."""
    return pa.schema([*sample_schema(), *payload_schema(plan.answer_encoding)])


def _metadata(plan: StorePlan, part: PartName) -> dict[str, str]:
    """Return what a shard says of itself: of which plan its answers are."""
    return {
        "stillhouse.format_version": str(FORMAT_VERSION),
        "stillhouse.encoding": plan.encoding,
        "stillhouse.temperature": repr(plan.temperature),
        "stillhouse.vocabulary_size": str(plan.vocabulary_size),
        "stillhouse.teacher_fingerprint": plan.teacher.fingerprint,
        "stillhouse.tokenizer_fingerprint": plan.tokenizer_fingerprint,
        "stillhouse.part": part,
        "stillhouse.part_fingerprint": plan.part(part).fingerprint,
    }


class ShardWriter:
    """Writes the samples of one shard, in order, into a binary file; `finish` says what was written.

    Used in `with`, so that what fails on the way lets go of the file.
    """

    def __init__(self, file: BinaryIO, plan: StorePlan, part: PartName, number: int) -> None:
        self._plan = plan
        self._next = plan.samples_of(part, number).start
        self._file = _Hashed(file)
        self._samples = self._tokens = self._positions = 0
        self._waiting: list[tuple[Sample, Payload]] = []
        self._schema = shard_schema(plan)
        settings = parquet_settings(self._schema)
        self._parquet = pq.ParquetWriter(pa.PythonFile(self._file, mode="w"), self._schema, **settings)
        # Said by itself: without the Arrow schema, which is not stored, the schema's own metadata is not written.
        self._parquet.add_key_value_metadata(_metadata(plan, part))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.stop()
        self._parquet.close()

    def add(self, sample: Sample, payload: Payload) -> None:
        """Take the next sample of the shard."""
        self._waiting.append((sample, payload))
        self._samples += 1
        self._tokens += len(sample.token_ids)
        self._positions += payload.num_positions
        if len(self._waiting) == self._plan.samples_per_group:
            self._write_group()

    def finish(self) -> Shard:
        """Write what is left, and return the entry of the manifest."""
        if self._waiting:
            self._write_group()
        self._parquet.close()
        return Shard(
            samples=self._samples,
            tokens=self._tokens,
            positions=self._positions,
            bytes=self._file.num_bytes,
            checksum=self._file.checksum,
        )

    def _write_group(self) -> None:
        samples, payloads = zip(*self._waiting, strict=True)
        indices = range(self._next, self._next + len(samples))
        arrays = [*sample_arrays(indices, samples), *payload_arrays(payloads, self._plan.answer_encoding)]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._parquet.write_table(table, row_group_size=len(samples))
        self._next += len(samples)
        self._waiting.clear()


def parquet_settings(schema: pa.Schema) -> dict[str, Any]:
    """Return how a shard's columns are written: what `pyarrow.parquet.ParquetWriter` takes."""
    # Bytes of like weight side by side: measured on real answers, a fifth less than as they come, and no more than gaps
    # of ids. Not float16, which DuckDB reads as it comes alone.
    answers = [_leaf(field) for field in schema if field.name not in SAMPLE_COLUMNS]
    split = [path for path, kind in answers if not pa.types.is_float16(kind)]
    return {
        "version": "2.6",
        "data_page_version": "1.0",
        "compression": "zstd",
        "compression_level": COMPRESSION_LEVEL,
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "write_statistics": False,
        "write_page_checksum": True,
        "store_schema": False,
    }


def _leaf(field: pa.Field) -> tuple[str, pa.DataType]:
    path, kind = field.name, field.type
    while pa.types.is_list(kind):
        path += ".list.element"
        kind = kind.value_type
    return path, kind


class _Hashed:
    """A binary file that is only written to, with the checksum of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.blake2b(digest_size=16)
        self.num_bytes = 0
        self.closed = False
        self._is_stopped = False

    def stop(self) -> None:
        """Take what is written from now on without keeping it: an end that nobody wants any more."""
        self._is_stopped = True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._is_stopped:
            return len(view)
        self._hash.update(view)
        self._file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.num_bytes

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Leave the file open: whoever opened it flushes and closes it."""
        self.closed = True

    @property
    def checksum(self) -> str:
        return self._hash.hexdigest()


class ShardReader:
    """A shard that is open: its footer in memory, its row groups read when they are asked for."""

    def __init__(self, source: Path | BinaryIO, plan: StorePlan, part: PartName) -> None:
        """Read the footer.

        Raises:
            OSError, pa.ArrowException: no Parquet file, one of other columns, or answers of another plan.
        """
        schema = shard_schema(plan)
        local = isinstance(source, Path)
        self._source: Any = pa.memory_map(str(source)) if local else pa.PythonFile(source, mode="r")
        self._parquet = pq.ParquetFile(self._source, pre_buffer=not local, page_checksum_verification=True)
        self.num_groups = self._parquet.num_row_groups
        self.num_samples = self._parquet.metadata.num_rows
        if self._parquet.schema_arrow.names != schema.names:
            found = ", ".join(self._parquet.schema_arrow.names)
            raise pa.ArrowInvalid(f"the columns should be {', '.join(schema.names)}; got {found}")
        says = {key.decode(): value.decode() for key, value in (self._parquet.metadata.metadata or {}).items()}
        for key, value in _metadata(plan, part).items():
            # The first shards that were written said nothing.
            if says.get(key, value) != value:
                raise pa.ArrowInvalid(f"it says that its {key} is {says.get(key)}, and the manifest {value}")

    def group(self, number: int, columns: Iterable[str]) -> Columns:
        """Return some columns of a row group.

        Raises:
            OSError, pa.ArrowException: bytes that are altered.
        """
        batch = self.batch(number, columns)
        return Columns(dict(zip(batch.schema.names, batch.columns, strict=True)))

    def batch(self, number: int, columns: Iterable[str]) -> pa.RecordBatch:
        """Return some columns of a row group as Arrow.

        Raises:
            OSError, pa.ArrowException: bytes that are altered.
        """
        table = self._parquet.read_row_group(number, columns=list(columns), use_threads=False)
        return pa.record_batch([column.combine_chunks() for column in table.columns], schema=table.schema)

    def close(self) -> None:
        """Let go of the file."""
        self._parquet.close()
        self._source.close()
