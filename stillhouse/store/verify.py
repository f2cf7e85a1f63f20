"""Is a store what its manifest says, and would its teacher say the same again?

Every byte is read. All faults are found, not the first alone; what is sound stays usable whatever else is not.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.codec import encode_payload
from stillhouse.data.dataset import PartName
from stillhouse.encoding_text import parse_encoding
from stillhouse.encodings import Dense, Hidden
from stillhouse.errors import StoreError
from stillhouse.providers import TeacherLogitsProvider
from stillhouse.request import LogitsRequest
from stillhouse.store.checking import counted, each_row, fault_of
from stillhouse.store.extras import read_output_head, read_tokens
from stillhouse.store.files import OUTPUT_HEAD, TOKENS, StoreFiles
from stillhouse.store.manifest import PART_NAMES, Manifest, Shard, StorePlan, WrittenFile
from stillhouse.store.opening import read_manifest
from stillhouse.store.reader import Store
from stillhouse.store.shard import shard_name

REASKED_AT_ONCE = 8


@dataclass(slots=True)
class Verified:
    """What was found: counts of what is sound, every fault in words, and how many answers were asked for again."""

    shards: int = 0
    samples: int = 0
    tokens: int = 0
    bytes: int = 0
    reasked: int = 0
    faults: list[str] = field(default_factory=list)


def verify(
    address: str | Path,
    *,
    teacher: TeacherLogitsProvider | None = None,
    num_samples: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    options: dict[str, Any] | None = None,
) -> Verified:
    """Read a store over: checksums, counts, order, and that every answer is one.

    Args:
        address: of the store, or of one share of a split one.
        teacher: asked again about some samples; its answers must have the bytes of those that are stored.
        num_samples: about how many, drawn by `seed`.
        seed: of that draw.
        progress: called with the shards read, and those in all.
        options: for fsspec's file system.

    Raises:
        StoreError: no store, or a teacher of another fingerprint.
        TeacherError: the teacher did not answer.
    """
    files = StoreFiles(address, options)
    manifest = read_manifest(files)
    found = Verified()
    total = sum(map(len, manifest.shards.values()))
    sound: list[tuple[PartName, int]] = []
    for done, (name, number, shard) in enumerate(manifest.each_shard()):
        if fault := _shard_fault(files, manifest.plan, name, number, shard):
            found.faults.append(fault)
        else:
            sound.append((name, number))
            found.shards += 1
            found.samples += shard.samples
            found.tokens += shard.tokens
            found.bytes += shard.bytes
        if progress is not None:
            progress(done + 1, total)
    found.faults += _faults_beside(files, manifest)
    if teacher is not None:
        store = Store(address, allow_partial=True, options=options)
        _ask_again(store, sound, teacher, num_samples, seed, found)
    return found


def _shard_fault(files: StoreFiles, plan: StorePlan, part: PartName, number: int, entry: Shard) -> str | None:
    name = shard_name(part, number)
    try:
        data = files.read(name)
    except FileNotFoundError:
        return f"{name} is missing"
    except StoreError as error:
        return str(error)
    if fault := fault_of(name, io.BytesIO(data), entry):
        return fault
    try:
        tokens, positions, _ = counted(each_row(io.BytesIO(data), plan, part, number))
    except StoreError as error:
        return str(error)
    if (tokens, positions) != (entry.tokens, entry.positions):
        said = f"{entry.tokens} tokens and {entry.positions} positions"
        return f"{name} holds {tokens} tokens and {positions} positions, where the manifest says {said}"
    return None


def _faults_beside(files: StoreFiles, manifest: Manifest) -> Iterator[str]:
    readers: tuple[tuple[WrittenFile | None, Callable[[StoreFiles, WrittenFile], object]], ...] = (
        (manifest.tokens, read_tokens),
        (manifest.output_head, read_output_head),
    )
    for entry, read in readers:
        if entry is None:
            continue
        try:
            read(files, entry)
        except StoreError as error:
            yield str(error).removeprefix(f"{files.name}: ")
    yield from _foreign(files, manifest)


def _foreign(files: StoreFiles, manifest: Manifest) -> Iterator[str]:
    """Yield what lies where readers of Parquet alone would take it for a part of the store."""
    beside = files.names("")
    for name, entry in ((TOKENS, manifest.tokens), (OUTPUT_HEAD, manifest.output_head)):
        if entry is None and name in beside:
            yield f"{name} is there, and the manifest does not name it: remove it, or copy the manifest again"
    shards = {shard_name(part, number) for part, number, _ in manifest.each_shard()}
    for part in PART_NAMES:
        for name in files.names(part):
            if name.endswith(".parquet") and f"{part}/{name}" not in shards:
                yield f"{part}/{name} is no shard of this store: remove it, as {part}/*.parquet would read it too"


def _ask_again(
    store: Store,
    shards: list[tuple[PartName, int]],
    teacher: TeacherLogitsProvider,
    num_samples: int,
    seed: int,
    found: Verified,
) -> None:
    plan = store.manifest.plan
    _check_askable(store, teacher)
    places = [(name, index) for name, number in shards for index in plan.samples_of(name, number)]
    chosen = sorted(random.Random(seed).sample(places, min(num_samples, len(places))))  # noqa: S311 - no secret
    for start in range(0, len(chosen), REASKED_AT_ONCE):
        group = chosen[start : start + REASKED_AT_ONCE]
        rows = [store.part(name)[index] for name, index in group]
        request = LogitsRequest(
            tuple(row.sequence for row in rows),
            store.encoding,
            temperature=plan.temperature,
            vocabulary_size=plan.vocabulary_size,
            # What a cache remembers may be this very store: see `stillhouse store load`.
            cache_mode="bypass",
            expected_fingerprint=plan.teacher.fingerprint,
        )
        answers = teacher.answer(request).payloads
        for (name, index), row, answer in zip(group, rows, answers, strict=True):
            found.reasked += 1
            if encode_payload(answer) != encode_payload(row.payload):
                found.faults.append(f"the teacher answers otherwise than is stored about sample {index} of {name}")


def _check_askable(store: Store, teacher: TeacherLogitsProvider) -> None:
    plan = store.manifest.plan
    asked = teacher.describe()
    if asked.fingerprint != plan.teacher.fingerprint:
        raise StoreError(
            f"{store.address} holds answers of {plan.teacher.model} with the fingerprint {plan.teacher.fingerprint}, "
            f"but this teacher is {asked.model} with {asked.fingerprint}: its weights or settings differ"
        )
    source = plan.derived_from and parse_encoding(plan.derived_from)
    if isinstance(source, Dense | Hidden) and source.value_type != "float32":
        raise StoreError(
            f"{store.address} was derived from {plan.derived_from} answers, whose rounding stands in it: no teacher "
            "gives the same bytes; verify it without a teacher"
        )
