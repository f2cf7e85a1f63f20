"""Reads a shard over, from its first byte to its last, and says what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from stillhouse.data.dataset import PartName
from stillhouse.errors import StoreError
from stillhouse.store.manifest import Shard, StorePlan, WrittenFile
from stillhouse.store.rows import StoredSample, check_row
from stillhouse.store.shard import ShardReader, shard_name, shard_schema

READ_BYTES: Final = 1 << 20


def file_entry(place: Path) -> WrittenFile:
    """Return the size of a file, and the BLAKE2b-128 of its bytes.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with place.open("rb") as file:
            return entry_of(file)
    except OSError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror or error}") from error


def entry_of(file: BinaryIO) -> WrittenFile:
    """Return the size and the BLAKE2b-128 of what is left of an open file."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    while chunk := file.read(READ_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return WrittenFile(bytes=size, checksum=digest.hexdigest())


def fault_of(name: str, file: BinaryIO, entry: WrittenFile) -> str | None:
    """Return in what an open file differs from what a manifest says of it; None where it does not."""
    found = entry_of(file)
    if found.bytes != entry.bytes:
        return f"{name} has {found.bytes} bytes, where the manifest says {entry.bytes}: it was cut off or altered"
    if found.checksum != entry.checksum:
        return f"{name} was altered: its checksum is {found.checksum}, where the manifest says {entry.checksum}"
    return None


def shard_entry(place: Path, plan: StorePlan, part: PartName, number: int) -> Shard:
    """Return what a manifest says of a shard, after every row was read.

    Raises:
        StoreError: it is not whole, altered, or of another plan.
    """
    try:
        tokens, positions, samples = counted(each_row(place, plan, part, number))
    except StoreError as error:
        raise StoreError(f"{place.parent.parent}: {error}; remove it, and its samples are asked for again") from error
    return Shard(samples=samples, tokens=tokens, positions=positions, **file_entry(place).model_dump())


def counted(rows: Iterator[StoredSample]) -> tuple[int, int, int]:
    """Return how many tokens, positions and samples some rows have."""
    tokens = positions = samples = 0
    for row in rows:
        samples += 1
        tokens += len(row.token_ids)
        positions += row.payload.num_positions
    return tokens, positions, samples


def each_row(source: Path | BinaryIO, plan: StorePlan, part: PartName, number: int) -> Iterator[StoredSample]:
    """Yield the rows of a shard, each seen to be where it belongs and to fit the plan.

    Raises:
        StoreError: it is not whole, altered, or of another plan; the message names it.
    """
    name = shard_name(part, number)
    try:
        reader = ShardReader(source, plan, part)
        try:
            yield from _rows(reader, plan, part, number)
        finally:
            reader.close()
    except (StoreError, OSError, pa.ArrowException, ValueError, IndexError, RuntimeError) as error:
        raise StoreError(f"{name} is not sound: {error}") from error


def _rows(reader: ShardReader, plan: StorePlan, part: PartName, number: int) -> Iterator[StoredSample]:
    indices = plan.samples_of(part, number)
    if reader.num_samples != len(indices):
        raise StoreError(f"it should hold {len(indices)} samples; it holds {reader.num_samples}")
    names = shard_schema(plan).names
    for group, start in enumerate(range(indices.start, indices.stop, plan.samples_per_group)):
        columns = reader.group(group, names)
        for row, index in enumerate(range(start, min(start + plan.samples_per_group, indices.stop))):
            if columns.sample_index(row) != index:
                raise StoreError(f"it has sample {columns.sample_index(row)} in the place of {index}")
            sample = columns.sample(row)
            payload = columns.payload(
                row, plan.answer_encoding, temperature=plan.temperature, vocabulary_size=plan.vocabulary_size
            )
            check_row(plan, sample, payload)
            yield StoredSample(sample.token_ids, sample.labels, sample.mask, sample.segment_lengths, payload)
