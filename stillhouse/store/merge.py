"""Joins the shares of a split capture: the result has the bytes of a capture that was never split.

Shares hold whole shards, so that nothing is written anew: each file is copied, and its checksum seen to on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from stillhouse.data.dataset import PartName
from stillhouse.errors import StoreError
from stillhouse.store.checking import READ_BYTES
from stillhouse.store.files import MANIFEST, OUTPUT_HEAD, TOKENS, StoreFiles, write_file, written_aside
from stillhouse.store.folders import new_folder
from stillhouse.store.manifest import Manifest, Shard, WrittenFile, differences
from stillhouse.store.opening import read_manifest
from stillhouse.store.shard import shard_name


@dataclass(frozen=True, slots=True)
class _Share:
    files: StoreFiles
    manifest: Manifest

    @property
    def index(self) -> int:
        return self.manifest.share[0]

    @property
    def text(self) -> str:
        return "{}/{}".format(*self.manifest.share)


def merge(
    addresses: SequenceOf[str | Path],
    out: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
    options: dict[str, Any] | None = None,
) -> Manifest:
    """Join shares, given in any order, into a new folder.

    Args:
        addresses: the folders of all shares 0/n to n-1/n.
        out: the store to be made: new, or empty.
        progress: called with the shards copied, and those in all.
        options: for fsspec's file system.

    Raises:
        StoreError: shares of other captures, one that is missing or there twice, a file that was altered, or a fault
            of writing; nothing is left of the new folder then.
    """
    shares = sorted((_opened(address, options) for address in addresses), key=lambda share: share.index)
    if not shares:
        raise StoreError("there is nothing to merge: name the folders of all shares")
    _check_fit(shares)
    plan = shares[0].manifest.plan
    shards: dict[PartName, tuple[Shard, ...]] = {
        name: tuple(shard for share in shares for shard in share.manifest.shards[name]) for name in plan.parts
    }
    first = shares[0].manifest
    manifest = Manifest(plan=plan, shards=shards, tokens=first.tokens, output_head=first.output_head)
    total, done = sum(map(len, shards.values())), 0
    with new_folder(out) as folder:
        for share in shares:
            for name, number, shard in share.manifest.each_shard():
                _copy(share.files, shard_name(name, number), shard, folder)
                done += 1
                if progress is not None:
                    progress(done, total)
        for beside, entry in ((TOKENS, manifest.tokens), (OUTPUT_HEAD, manifest.output_head)):
            if entry is not None:
                _copy(shares[0].files, beside, entry, folder)
        write_file(folder / MANIFEST, manifest.to_json())
    return manifest


def _opened(address: str | Path, options: dict[str, Any] | None) -> _Share:
    files = StoreFiles(address, options)
    return _Share(files, read_manifest(files))


def _check_fit(shares: list[_Share]) -> None:
    first = shares[0]
    for share in shares[1:]:
        if found := differences(share.manifest.plan, first.manifest.plan):
            raise StoreError(
                f"{share.files.name} and {first.files.name} are of two captures: in the first {'; '.join(found)}"
            )
        if share.manifest.share[1] != first.manifest.share[1]:
            raise StoreError(
                f"{share.files.name} holds share {share.text}, and {first.files.name} share {first.text}: they are cut "
                "differently"
            )
        for name in ("tokens", "output_head"):
            if getattr(share.manifest, name) != getattr(first.manifest, name):
                raise StoreError(
                    f"{share.files.name} and {first.files.name} differ in the teacher's {name}: they are of two "
                    "teachers"
                )
    for one, other in pairwise(shares):
        if one.index == other.index:
            raise StoreError(f"{one.files.name} and {other.files.name} both hold share {one.text}: name one of them")
    count = first.manifest.share[1]
    missing = sorted(set(range(count)) - {share.index for share in shares})
    if missing:
        named = ", ".join(f"{index}/{count}" for index in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise StoreError(f"share(s) {named}{more} are missing: name the folders of all {count}")


def _copy(files: StoreFiles, name: str, entry: WrittenFile, folder: Path) -> None:
    """Copy a file, whose bytes must be those of its manifest."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with files.open(name) as source, written_aside(folder / name) as target:
            while chunk := source.read(READ_BYTES):
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
            if (size, digest.hexdigest()) != (entry.bytes, entry.checksum):
                raise StoreError(
                    f"{files.name}: {name} is not what its manifest says, {entry.bytes} bytes with the checksum "
                    f"{entry.checksum}: it was cut off or altered; copy it again, or capture that share again"
                )
    except FileNotFoundError as error:
        raise StoreError(f"{files.name}: {name} is missing; copy it again, or capture that share again") from error
