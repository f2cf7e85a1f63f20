"""Random access to a store, in a folder or at any fsspec address: `open_store`.

Opening reads the manifest alone. A sample's shard and row group follow from its index; local shards are mapped into
memory. What is kept is bounded: some open shards, and some decoded row groups. Safe for threads; a process that is
forked, or that gets a store by pickling, opens the files anew.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillhouse.data.dataset import Part, PartName
from stillhouse.data.packing import Sample
from stillhouse.encodings import Encoding
from stillhouse.errors import CodecError, StoreError
from stillhouse.payloads import OutputHead, Payload
from stillhouse.request import TeacherDescription
from stillhouse.store.columns import SAMPLE_COLUMNS, Columns
from stillhouse.store.extras import read_output_head, read_tokens
from stillhouse.store.files import StoreFiles
from stillhouse.store.manifest import Manifest
from stillhouse.store.open_shards import OpenShards
from stillhouse.store.opening import read_manifest
from stillhouse.store.rows import StoredSample, check_row
from stillhouse.store.shard import shard_name, shard_schema


def open_store(address: str | Path, *, allow_partial: bool = False, **options: Any) -> Store:
    """Open an offline store.

    Args:
        address: a folder, or an address of any protocol that fsspec knows, such as s3://bucket/store.
        allow_partial: also open one share of a capture that was split, in which some samples are missing.
        options: for fsspec's file system, besides what it finds in the environment.

    Raises:
        StoreError: no store, a capture that is not at its end, a newer format, or a share where the whole is needed.
    """
    return Store(address, allow_partial=allow_partial, options=options)


class Store:
    """An open store: see `open_store`. `store[i]` is `store.train[i]`."""

    def __init__(
        self, address: str | Path, *, allow_partial: bool = False, options: dict[str, Any] | None = None
    ) -> None:
        self._arguments = (os.fspath(address), allow_partial, options)
        self._files = StoreFiles(address, options)
        self.address = self._files.name
        self.manifest: Manifest = read_manifest(self._files)
        if not self.manifest.is_whole and not allow_partial:
            index, count = self.manifest.share
            raise StoreError(
                f"{self.address} holds share {index}/{count} of a store: join the shares with `stillhouse store merge`"
            )
        plan = self.manifest.plan
        self.encoding: Encoding = plan.answer_encoding
        self.train = StorePart(self, "train")
        self.held_out: StorePart | None = StorePart(self, "held_out") if plan.held_out is not None else None
        self._shards = OpenShards(self._files, self.manifest)
        self._tokens: tuple[str, ...] | None = None
        self._output_head: OutputHead | None = None

    def part(self, name: PartName) -> StorePart:
        """Return a part by its name.

        Raises:
            StoreError: this store has none such.
        """
        found = self.train if name == "train" else self.held_out
        if found is None:
            raise StoreError(f"{self.address} has no held-out part: the corpus had none")
        return found

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, index: int) -> StoredSample:
        return self.train[index]

    def __iter__(self) -> Iterator[StoredSample]:
        return iter(self.train)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The teacher's tokens in the order of their ids; none where it had no tokenizer."""
        if self._tokens is None:
            self._tokens = read_tokens(self._files, entry) if (entry := self.manifest.tokens) is not None else ()
        return self._tokens

    def output_head(self) -> OutputHead | None:
        """Return what rebuilds the logits of a `Hidden` store, on the host; None for others."""
        if self._output_head is None and (entry := self.manifest.output_head) is not None:
            self._output_head = read_output_head(self._files, entry)
        return self._output_head

    def describe(self) -> TeacherDescription:
        """Return the description of the teacher whose answers these are."""
        return self.manifest.plan.describe(self.tokens)

    def close(self) -> None:
        """Let go of the files; reading opens them again."""
        self._shards.close()

    def columns(self, part: PartName, index: int, names: tuple[str, ...]) -> tuple[Columns, int]:
        """Return decoded columns of the row group that holds a sample, and the sample's row among them."""
        return self._shards.columns(part, index, names)

    def batches(self, part: PartName, number: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one shard as Arrow, a row group at a time.

        Raises:
            StoreError: the shard is missing or altered.
        """
        return self._shards.batches(part, number)

    def __repr__(self) -> str:
        return f"Store({self.address!r}, {self.manifest.plan.encoding}, {len(self.train)} samples)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._arguments


def _reopen(address: str, allow_partial: bool, options: dict[str, Any] | None) -> Store:
    return Store(address, allow_partial=allow_partial, options=options)


class StorePart:
    """The samples of one part of a store, by the indices that they have in the prepared corpus.

    What training asks of a `PackedDataset` it can ask of this; `fingerprint` is that of the corpus' part.
    """

    def __init__(self, store: Store, name: PartName) -> None:
        plan = store.manifest.plan
        self._store = store
        self._plan = plan
        self.name: PartName = name
        self.part: Part = plan.part(name)
        self.fingerprint: str = self.part.fingerprint
        self.tokenizer_fingerprint = plan.tokenizer_fingerprint
        self.vocabulary_size = plan.tokenizer_vocabulary_size
        self.max_token_id = plan.max_token_id
        self.block_size = plan.block_size
        self._held = plan.shards_of(name, store.manifest.share)
        self._columns = tuple(shard_schema(plan).names)

    def __len__(self) -> int:
        return self.part.num_samples

    @property
    def num_held(self) -> int:
        """How many of the samples the store holds: all in a whole store."""
        return sum(shard.samples for shard in self._store.manifest.shards[self.name])

    def has(self, index: int) -> bool:
        """Return whether the store holds a sample: all in a whole store, those of its shards in a share of one."""
        return 0 <= index < len(self) and index // self._plan.samples_per_shard in self._held

    def __getitem__(self, index: int) -> StoredSample:
        """Return a sample and its answer; a negative index counts from the end.

        Raises:
            TypeError: the index is no integer; slices are not taken.
            IndexError: there is no such sample.
            StoreError: it is in another share, or its shard is missing or altered.
        """
        index = self._checked(index)
        columns, row = self._store.columns(self.name, index, self._columns)
        found: StoredSample = self._faults(index, self._row, columns, row)
        return found

    def __iter__(self) -> Iterator[StoredSample]:
        return (self[index] for index in range(len(self)) if self.has(index))

    def sample(self, index: int) -> Sample:
        """Return a sample without its answer, of which nothing is read.

        Raises:
            IndexError, StoreError: as `[index]` does.
        """
        index = self._checked(index)
        columns, row = self._store.columns(self.name, index, SAMPLE_COLUMNS)
        sample: Sample = self._faults(index, columns.sample, row)
        return sample

    def payload(self, index: int) -> Payload:
        """Return the answer about a sample.

        Raises:
            IndexError, StoreError: as `[index]` does.
        """
        return self[index].payload

    def sample_lengths(self) -> NDArray[np.int64]:
        """Return the length in tokens of each sample, int64 `[S]`: the block size, but for the last."""
        lengths = np.full(len(self), self.block_size, np.int64)
        last = len(self) - 1
        if self.has(last):
            shard = self._store.manifest.shards[self.name][-1]
            lengths[-1] = shard.tokens - (shard.samples - 1) * self.block_size
        return lengths

    def _row(self, columns: Columns, row: int) -> StoredSample:
        sample = columns.sample(row)
        plan = self._plan
        payload = columns.payload(
            row, self._store.encoding, temperature=plan.temperature, vocabulary_size=plan.vocabulary_size
        )
        check_row(plan, sample, payload)
        return StoredSample(sample.token_ids, sample.labels, sample.mask, sample.segment_lengths, payload)

    def _checked(self, index: int) -> int:
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(
                f"the index of a sample must be an integer; got {index!r}: take samples one by one"
            ) from None
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        if not self.has(index):
            share = "{}/{}".format(*self._store.manifest.share)
            raise StoreError(f"{self._store.address} holds share {share}, without sample {index} of {self.name}")
        return index

    def _faults(self, index: int, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (StoreError, CodecError, ValueError, IndexError, RuntimeError) as error:
            name = shard_name(self.name, index // self._plan.samples_per_shard)
            raise StoreError(
                f"{self._store.address}: {name} holds no sound sample {index}: {error}; copy or capture it again"
            ) from error

    def __repr__(self) -> str:
        return f"StorePart({self._store.address!r}, {self.name!r}, {len(self)} samples of {self.block_size} tokens)"
