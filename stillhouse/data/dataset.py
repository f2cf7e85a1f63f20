"""A prepared corpus on disk: its manifest, its memory-mapped arrays, and the samples of each of its parts.

    manifest.json        the format's version, fingerprints, counts, and the size of every other file
    token_ids.u32        [N] every document end to end
    learnt.u8            [N] 1 where a token is learnt; absent where all are
    PART.starts.i64      [D] where in token_ids each document of the part starts
    PART.edges.i64       [D + 1] where it starts when the part's documents stand end to end
    PART.samples.i64     [S] which blocks of the part are its samples

PART is `train` or `held_out`; all integers are little-endian. Knows nothing of sources or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.data.packing import Packing, Sample, Segment, read_sample

FORMAT_VERSION: Final = 2
"""Part of every cache key: raise it when the same corpus and settings would give other arrays."""

MANIFEST: Final = "manifest.json"

PartName = Literal["train", "held_out"]


class Part(BaseModel):
    """What the manifest says of one part. `num_learnt` counts its tokens that some position learns to predict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    num_samples: int
    num_documents: int
    num_tokens: int
    num_learnt: int
    skipped_samples: int


class Manifest(BaseModel):
    """What a prepared corpus says of itself. `vocabulary_size` is the tokenizer's; every id lies below it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    key: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    max_token_id: int
    block_size: int
    skipped_documents: int
    train: Part
    held_out: Part | None
    files: dict[str, int]


class PackedDataset:
    """The samples of one part of a prepared corpus, read from memory-mapped files when they are asked for.

    `fingerprint` names the samples' content: equal corpora under equal settings have it on every machine.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: PartName) -> None:
        part = getattr(manifest, name)
        if part is None:
            raise ValueError(f"{folder} has no part {name}")
        self.folder = folder
        self.name: PartName = name
        self.part: Part = part
        self.fingerprint: str = part.fingerprint
        self.tokenizer_fingerprint = manifest.tokenizer_fingerprint
        self.vocabulary_size = manifest.vocabulary_size
        self.max_token_id = manifest.max_token_id
        self.block_size = manifest.block_size
        self._token_ids = _mapped(folder / "token_ids.u32", "<u4")
        self._learnt = _mapped(folder / "learnt.u8", "?") if "learnt.u8" in manifest.files else None
        self._samples = _mapped(folder / f"{name}.samples.i64", "<i8")
        self._edges = _mapped(folder / f"{name}.edges.i64", "<i8")
        self._packing = Packing(_mapped(folder / f"{name}.starts.i64", "<i8"), self._edges, self.block_size)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample; a negative index counts from the end.

        Raises:
            IndexError: there is no such sample.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return read_sample(self._token_ids, self._learnt, self._segments(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def document_lengths(self) -> NDArray[np.int64]:
        """Return the length in tokens of each document of the part, int64 `[D]`."""
        lengths: NDArray[np.int64] = np.diff(self._edges)
        return lengths

    def sample_lengths(self) -> NDArray[np.int64]:
        """Return the length in tokens of each sample, int64 `[S]`: the block size, but for the last block."""
        starts = np.asarray(self._samples, dtype=np.int64) * self.block_size
        lengths: NDArray[np.int64] = np.minimum(self.block_size, int(self._edges[-1]) - starts)
        return lengths

    def _segments(self, index: int) -> list[Segment]:
        return self._packing.segments(int(self._samples[index]))

    def __repr__(self) -> str:
        return f"PackedDataset({str(self.folder)!r}, {self.name!r}, {len(self)} samples of {self.block_size} tokens)"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared corpus: its training part, its held-out part if it has one, and whether it was there already."""

    train: PackedDataset
    held_out: PackedDataset | None
    manifest: Manifest
    folder: Path
    from_cache: bool = False


def open_prepared(folder: Path) -> Prepared | None:
    """Open a prepared corpus, or return None where there is none that is complete and of this format."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    except (OSError, ValidationError):
        return None
    if manifest.format_version != FORMAT_VERSION or sizes != manifest.files:
        return None
    return Prepared(
        PackedDataset(folder, manifest, "train"),
        PackedDataset(folder, manifest, "held_out") if manifest.held_out is not None else None,
        manifest,
        folder,
    )


def _mapped(path: Path, dtype: str) -> Any:
    return np.memmap(path, dtype=dtype, mode="r")
