"""Fills a store, or one share of it, and goes on where an earlier process stopped.

    capture.json               the plan and the share: written first, and gone at the end
    partial/lock               held by the process that writes
    partial/train-000003       the answers of a shard that is not complete: see `journal`
    partial/shards             one line for each shard that is: what the manifest will say of it
    train/000002.parquet       a complete shard
    manifest.json              written last

An answer is in the journal as soon as `add` returns, so that a process that is killed has lost none; a power cut may
lose those of the last seconds, which are then missing and asked for again. What a shard holds and how it is written
follow from the plan alone, so that the files are those of a run that nobody stopped.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.data.dataset import PartName
from stillhouse.data.packing import Sample
from stillhouse.errors import CodecError, StoreError
from stillhouse.payloads import OutputHead, Payload
from stillhouse.store.checking import file_entry, shard_entry
from stillhouse.store.extras import write_output_head, write_tokens
from stillhouse.store.files import (
    CAPTURE,
    MANIFEST,
    OUTPUT_HEAD,
    PARTIAL,
    TOKENS,
    local_folder,
    write_file,
    writing,
    written_aside,
)
from stillhouse.store.folders import check_place
from stillhouse.store.journal import Journal
from stillhouse.store.ledger import Ledger
from stillhouse.store.manifest import (
    Manifest,
    Shard,
    StorePlan,
    WrittenFile,
    canonical_json,
    check_head,
    check_share,
    differences,
)
from stillhouse.store.opening import read_manifest
from stillhouse.store.rows import check_row
from stillhouse.store.shard import ShardWriter, shard_name


class Capture(BaseModel):
    """What `capture.json` says: which plan is being carried out, and which share of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: StorePlan
    share: tuple[int, int]


class StoreWriter:
    """Takes answers in any order, from any thread; as a context manager it lets go of the folder at the end.

    Args:
        folder: the store: new, empty, or one that an earlier process began with the same plan and share.
        plan: what the whole store is to hold.
        part: (i, n): this writer fills the i-th of n shares, 0 <= i < n: whole shards of each part of the corpus.
        tokens: the teacher's tokens in the order of their ids, where it has any.
        output_head: what rebuilds the logits from `Hidden` answers; needed for these, and for no others.

    Raises:
        StoreError: a folder that holds something else, that another process fills, or that cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        plan: StorePlan,
        part: tuple[int, int] = (0, 1),
        *,
        tokens: tuple[str, ...] = (),
        output_head: OutputHead | None = None,
    ) -> None:
        try:
            check_share(part)
        except ValueError as error:
            raise StoreError(str(error)) from error
        self.folder = local_folder(folder)
        self.plan = plan
        self.share = part
        self._tokens = tokens
        self._output_head = output_head
        self._partial = self.folder / PARTIAL
        self._ledger = Ledger(self._partial / "shards")
        self._mutex = threading.RLock()
        self._journals: dict[tuple[PartName, int], Journal] = {}
        self._shards: dict[tuple[PartName, int], Shard] = {}
        self._file_lock: FileLock | None = None
        self._manifest = self._finished_before()
        if self._manifest is None:
            self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return self._manifest is not None

    def num_samples(self, part: PartName) -> int:
        """Return how many samples of a part of the corpus this share holds when it is complete."""
        return sum(len(self.plan.samples_of(part, shard)) for shard in self.plan.shards_of(part, self.share))

    def num_done(self, part: PartName) -> int:
        """Return how many of them are there."""
        with self._mutex:
            if self._manifest is not None:
                return self.num_samples(part)
            whole = sum(shard.samples for (name, _), shard in self._shards.items() if name == part)
            return whole + sum(len(journal) for (name, _), journal in self._journals.items() if name == part)

    def missing(self, part: PartName) -> Iterator[int]:
        """Yield the indices of the samples whose answers are not there, shard by shard, looking as it goes."""
        if self._manifest is not None:
            return
        for shard in self.plan.shards_of(part, self.share):
            for index in self.plan.samples_of(part, shard):
                if not self.has(part, index):
                    yield index

    def has(self, part: PartName, index: int) -> bool:
        """Return whether a sample's answer is there."""
        key = part, index // self.plan.samples_per_shard
        with self._mutex:
            if self._manifest is not None or key in self._shards:
                return True
            return key in self._journals and index in self._journals[key]

    def add(self, part: PartName, index: int, sample: Sample, payload: Payload) -> None:
        """Take a sample and its answer; one that is there already is left as it is.

        Raises:
            StoreError: a sample of another share, an answer that is none of the plan's, or a fault of writing; nothing
                that was added before is lost.
        """
        shard = index // self.plan.samples_per_shard
        if part not in self.plan.parts or shard not in self.plan.shards_of(part, self.share):
            raise StoreError(f"sample {index} of {part} is none of share {self.share[0]}/{self.share[1]} of this store")
        if index not in self.plan.samples_of(part, shard):
            raise StoreError(f"{part} has {self.plan.part(part).num_samples} samples; got sample {index}")
        check_row(self.plan, sample, payload)
        is_last = index == self.plan.part(part).num_samples - 1
        if not is_last and len(sample.token_ids) != self.plan.block_size:
            raise StoreError(
                f"every sample but a part's last has {self.plan.block_size} tokens; sample {index} of {part} has "
                f"{len(sample.token_ids)}"
            )
        with self._mutex:
            self._require_open()
            if self.has(part, index):
                return
            journal = self._journal(part, shard)
            with writing(journal.path):
                journal.add(index, sample, payload)
            if len(journal) == len(self.plan.samples_of(part, shard)):
                self._complete(part, shard)

    def finish(self) -> Manifest:
        """Write the manifest of what is complete, and remove what only a capture needs.

        Raises:
            StoreError: samples are missing, or a fault of writing.
        """
        with self._mutex:
            if self._manifest is not None:
                return self._manifest
            self._require_open()
            for name in self.plan.parts:
                if (index := next(self.missing(name), None)) is not None:
                    count = self.num_samples(name) - self.num_done(name)
                    raise StoreError(
                        f"{self.folder} lacks {count} sample(s) of {name}, the first of them {index}: capture goes on "
                        "with the same command"
                    )
            shards = {
                name: tuple(self._shards[name, number] for number in self.plan.shards_of(name, self.share))
                for name in self.plan.parts
            }
            manifest = Manifest(
                plan=self.plan,
                share=self.share,
                shards=shards,
                tokens=self._entry(TOKENS),
                output_head=self._entry(OUTPUT_HEAD),
            )
            write_file(self.folder / MANIFEST, manifest.to_json())
            self._clean()
            self._manifest = manifest
            return manifest

    def close(self) -> None:
        """Let go of the folder; a later writer goes on."""
        with self._mutex:
            for journal in self._journals.values():
                journal.close()
            self._journals.clear()
            if self._file_lock is not None:
                self._file_lock.release()
                self._file_lock = None

    def _finished_before(self) -> Manifest | None:
        if not (self.folder / MANIFEST).exists():
            return None
        manifest = read_manifest(self.folder)
        self._require_same(manifest.plan, manifest.share)
        if (self.folder / CAPTURE).exists() or self._partial.exists():
            self._lock()
            self._clean()
            self.close()
        return manifest

    def _require_same(self, plan: StorePlan, share: tuple[int, int]) -> None:
        if found := differences(plan, self.plan):
            raise StoreError(
                f"{self.folder} holds other answers than are asked for: {'; '.join(found)}. Name another folder, or "
                "repeat what this one was begun with"
            )
        if share != self.share:
            raise StoreError(
                f"{self.folder} holds share {share[0]}/{share[1]}, not {self.share[0]}/{self.share[1]}: each share "
                "has a folder of its own"
            )

    def _begin(self) -> None:
        try:
            check_head(self.plan, has_head=self._output_head is not None)
        except ValueError as error:
            raise StoreError(str(error)) from error
        check_place(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            has_plan = (self.folder / CAPTURE).exists()
        with writing(self._partial):
            self._partial.mkdir(exist_ok=True)
        self._lock()
        try:
            if has_plan:
                capture = _read_capture(self.folder / CAPTURE)
                self._require_same(capture.plan, capture.share)
            else:
                write_file(self.folder / CAPTURE, canonical_json(Capture(plan=self.plan, share=self.share)))
            self._write_extras()
            self._take_stock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        lock = FileLock(self._partial / "lock", timeout=0)
        with writing(self._partial):
            try:
                lock.acquire()
            except Timeout:
                raise StoreError(f"{self.folder} is being filled by another process; wait for it, or stop it") from None
        self._file_lock = lock

    def _require_open(self) -> None:
        if self._file_lock is None:
            raise StoreError(f"{self.folder}: this writer is closed")

    def _write_extras(self) -> None:
        if self._tokens and not (self.folder / TOKENS).exists():
            write_tokens(self.folder, self._tokens)
        if self._output_head is not None and not (self.folder / OUTPUT_HEAD).exists():
            write_output_head(self.folder, self._output_head)

    def _take_stock(self) -> None:
        """Find the shards that are complete, and the journals of those that are not."""
        known = self._ledger.read()
        for name in self.plan.parts:
            with writing(self.folder / name):
                (self.folder / name).mkdir(exist_ok=True)
            for number in self.plan.shards_of(name, self.share):
                place = self.folder / shard_name(name, number)
                journal = self._journal_path(name, number)
                if place.exists():
                    shard = known.get((name, number))
                    if shard is None or shard.bytes != place.stat().st_size:
                        shard = self._entry_of_shard(place, name, number)
                    self._shards[name, number] = shard
                    journal.unlink(missing_ok=True)
                elif journal.exists():
                    self._journal(name, number)
                    if len(self._journals[name, number]) == len(self.plan.samples_of(name, number)):
                        self._complete(name, number)

    def _entry_of_shard(self, place: Path, part: PartName, number: int) -> Shard:
        """Read a complete shard over, of which no line tells: its writer was killed in between."""
        shard = shard_entry(place, self.plan, part, number)
        self._ledger.note(part, number, shard)
        return shard

    def _journal_path(self, part: PartName, number: int) -> Path:
        return self._partial / f"{part}-{number:06d}"

    def _journal(self, part: PartName, number: int) -> Journal:
        key = part, number
        if key not in self._journals:
            path = self._journal_path(part, number)
            with writing(path):
                self._journals[key] = Journal(path)
        return self._journals[key]

    def _complete(self, part: PartName, number: int) -> None:
        """Write a shard of which every answer is there."""
        journal = self._journals[part, number]
        place = self.folder / shard_name(part, number)
        try:
            with written_aside(place) as file, ShardWriter(file, self.plan, part, number) as shard_writer:
                for index in self.plan.samples_of(part, number):
                    shard_writer.add(*journal.read(index))
                shard = shard_writer.finish()
        except CodecError as error:
            raise StoreError(f"{error}; remove it, and its samples are asked for again") from error
        self._ledger.note(part, number, shard)
        self._shards[part, number] = shard
        del self._journals[part, number]
        with writing(journal.path):
            journal.remove()

    def _entry(self, name: str) -> WrittenFile | None:
        place = self.folder / name
        return file_entry(place) if place.exists() else None

    def _clean(self) -> None:
        with writing(self.folder):
            (self.folder / CAPTURE).unlink(missing_ok=True)
            for journal in self._journals.values():
                journal.close()
            self._journals.clear()
            shutil.rmtree(self._partial, ignore_errors=True)


def _read_capture(place: Path) -> Capture:
    try:
        return Capture.model_validate_json(place.read_bytes())
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"{place} cannot be read as the plan of a capture of this version ({_first_line(error)}); name another "
            "folder"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
