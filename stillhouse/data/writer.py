"""Writes tokenised documents into a folder, and lays out its parts; the other half of `dataset`.

Token ids go to disk as they come. What stays in memory is three numbers per document and one per held-out sample.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from stillhouse.data.dataset import FORMAT_VERSION, MANIFEST, Manifest, Part, PartName
from stillhouse.data.held_out import Ranges, content_key, split
from stillhouse.data.items import Encoded
from stillhouse.data.packing import Packing, Sample, read_sample
from stillhouse.errors import DataError

_log = structlog.get_logger(__name__)

CHUNK_TOKENS: Final = 1 << 22
"""Tokens looked at a time when the written corpus is read over."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What `finish` needs to know.

    Documents from `held_out_from` on came from the held-out sources, where there are any. A vocabulary size of None is
    that of the ids that are there.
    """

    key: str
    tokenizer_fingerprint: str
    vocabulary_size: int | None
    block_size: int
    held_out_from: int | None = None
    held_out_fraction: float | None = None
    held_out_samples: int | None = None


class CorpusWriter:
    """Takes documents, or pieces of them, in order; `finish` lays out the parts and writes the manifest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids_file = (folder / "token_ids.u32").open("wb")
        self._learnt_file = (folder / "learnt.u8").open("wb")
        self._starts = array("q")
        self._lengths = array("q")
        self._keys = array("q")
        self._begin_document(0)
        self.num_tokens = 0
        self.skipped_documents = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids_file.close()
        self._learnt_file.close()

    @property
    def num_documents(self) -> int:
        """Documents that were kept so far."""
        return len(self._starts)

    def add(self, encoded: Encoded) -> None:
        """Take a document or a piece of one; a document with nothing to learn is left out, and counted."""
        ids = encoded.token_ids.astype("<u4", copy=False).tobytes()
        self._ids_file.write(ids)
        self._learnt_file.write(encoded.learnt.tobytes())
        self._document_hash.update(ids)
        self._document_learns |= bool(encoded.learnt.any())
        self.num_tokens += len(encoded.token_ids)
        if encoded.last:
            self._end_document()

    def _begin_document(self, start: int) -> None:
        self._document_start = start
        self._document_learns = False
        self._document_hash = hashlib.blake2b(digest_size=8)

    def _end_document(self) -> None:
        length = self.num_tokens - self._document_start
        if self._document_learns:
            self._starts.append(self._document_start)
            self._lengths.append(length)
            self._keys.append(int.from_bytes(self._document_hash.digest(), "little") >> 1)
        elif length:
            self.skipped_documents += 1
            self.num_tokens = self._document_start
            self._ids_file.seek(4 * self.num_tokens)
            self._ids_file.truncate()
            self._learnt_file.seek(self.num_tokens)
            self._learnt_file.truncate()
        self._begin_document(self.num_tokens)

    def finish(self, layout: Layout) -> None:
        """Choose what is held out, write every part and, last, the manifest.

        Raises:
            DataError: nothing to train on, nothing to hold out, or a held-out sample that is also a training sample.
        """
        self.__exit__()
        if not self.num_documents:
            raise DataError("the sources hold nothing to learn from; check the columns, and what is to be learnt")
        corpus = _WrittenCorpus(self._folder)
        documents = Ranges(np.asarray(self._starts, dtype=np.int64), np.asarray(self._lengths, dtype=np.int64))
        train, held_out = self._parts(documents, corpus, layout)
        held_keys: dict[int, int] = {}
        held_part = None
        if held_out is not None:
            held_part = _PartWriter(corpus, "held_out", held_out, layout)
            held_keys = held_part.sample_keys()
        train_part = _PartWriter(corpus, "train", train, layout)
        shared = train_part.shared_samples(held_keys)
        if held_part is not None and shared:
            if layout.held_out_from is not None:
                mine, theirs = next(iter(shared.items()))
                raise DataError(
                    f"held_out_sources share {len(shared)} sample(s) with the training part (held-out sample {mine} is "
                    f"training sample {theirs}): what is measured must not be trained on; take them out of one"
                )
            held_part.leave_out(shared)
        parts = train_part.write(), None if held_part is None else held_part.write()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            key=layout.key,
            tokenizer_fingerprint=layout.tokenizer_fingerprint,
            vocabulary_size=layout.vocabulary_size or corpus.max_token_id + 1,
            max_token_id=corpus.max_token_id,
            block_size=layout.block_size,
            skipped_documents=self.skipped_documents,
            train=parts[0],
            held_out=parts[1],
            files={path.name: path.stat().st_size for path in sorted(self._folder.iterdir())},
        )
        (self._folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _parts(self, documents: Ranges, corpus: _WrittenCorpus, layout: Layout) -> tuple[Ranges, Ranges | None]:
        if (edge := layout.held_out_from) is not None:
            if edge == 0 or edge == self.num_documents:
                side = "sources" if edge == 0 else "held_out_sources"
                raise DataError(f"{side} hold nothing to learn from; check the columns, and what is to be learnt")
            return _taken_apart(documents, np.asarray(self._keys, dtype=np.int64), edge)
        target = (layout.held_out_samples or 0) * layout.block_size
        if layout.held_out_fraction is not None:
            target = round(layout.held_out_fraction * documents.num_tokens)
        if not target:
            return documents, None
        keys = np.asarray(self._keys, dtype=np.int64)
        return split(documents, keys, corpus.token_ids, target_tokens=target, block_size=layout.block_size)


def _taken_apart(documents: Ranges, keys: NDArray[np.int64], edge: int) -> tuple[Ranges, Ranges]:
    """Return the documents before `edge`, and those from it on that are not among them: packed, equal texts may differ.

    Raises:
        DataError: there would be none.
    """
    starts, lengths = documents.starts, documents.lengths
    own = ~np.isin(keys[edge:], keys[:edge])
    if not own.any():
        raise DataError(
            f"held_out_sources share all of their {len(own)} document(s) with the training part: what is measured must "
            "not be trained on; take them out of one"
        )
    if not own.all():
        _log.warning(
            "held_out_documents_dropped",
            documents=int((~own).sum()),
            of=len(own),
            reason="the training sources hold them too, and what is measured must not be trained on",
        )
    return Ranges(starts[:edge], lengths[:edge]), Ranges(starts[edge:][own], lengths[edge:][own])


class _WrittenCorpus:
    """The arrays as they stand on disk, read over once for their hash, their highest id, and whether all is learnt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token_ids: Any = np.memmap(folder / "token_ids.u32", dtype="<u4", mode="r")
        learnt: Any = np.memmap(folder / "learnt.u8", dtype="?", mode="r")
        hasher = hashlib.blake2b(digest_size=16)
        self.max_token_id = 0
        all_learnt = True
        for start in range(0, len(self.token_ids), CHUNK_TOKENS):
            ids, flags = self.token_ids[start : start + CHUNK_TOKENS], learnt[start : start + CHUNK_TOKENS]
            hasher.update(ids.tobytes())
            hasher.update(flags.tobytes())
            self.max_token_id = max(self.max_token_id, int(ids.max()))
            all_learnt &= bool(flags.all())
        self.digest = hasher.hexdigest()
        self.learnt: NDArray[np.bool_] | None = None if all_learnt else learnt
        if all_learnt:
            (folder / "learnt.u8").unlink()


class _PartWriter:
    """One part: its ranges packed into blocks, and those of them that are samples."""

    def __init__(self, corpus: _WrittenCorpus, name: PartName, ranges: Ranges, layout: Layout) -> None:
        self._corpus = corpus
        self._name = name
        self._ranges = ranges
        self._layout = layout
        self._edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(ranges.lengths)])
        self._packing = Packing(ranges.starts, self._edges, layout.block_size)
        # A block in which no position counts (all of it somebody's long prompt) would only be a question for nothing.
        self._samples = [block for block in range(self._packing.num_blocks) if self._sample(block).mask.any()]

    def _sample(self, block: int) -> Sample:
        return read_sample(self._corpus.token_ids, self._corpus.learnt, self._packing.segments(block))

    def sample_keys(self) -> dict[int, int]:
        """Return the content key of each sample, and one sample that has it."""
        return {content_key(self._sample(block).token_ids.data.cast("B")): block for block in self._samples}

    def shared_samples(self, others: dict[int, int]) -> dict[int, int]:
        """Return which blocks of another part, by their content keys, are samples here too, and which those are."""
        if not others:
            return {}
        keys = ((content_key(self._sample(block).token_ids.data.cast("B")), block) for block in self._samples)
        return {others[key]: block for key, block in keys if key in others}

    def leave_out(self, blocks: dict[int, int]) -> None:
        """Leave out samples that are in the training part too, with their copies here.

        Raises:
            DataError: none would be left.
        """
        keys = {content_key(self._sample(block).token_ids.data.cast("B")) for block in blocks}
        self._samples = [
            block for block in self._samples if content_key(self._sample(block).token_ids.data.cast("B")) not in keys
        ]
        if not self._samples:
            raise DataError(
                "every sample that was held out also stands in the training part: the corpus repeats itself; remove "
                "the repetitions, or name held_out_sources"
            )

    def write(self) -> Part:
        """Write the part's arrays and return what the manifest says of it.

        Raises:
            DataError: it has no sample.
        """
        if not self._samples:
            raise DataError(
                f"the {self._name.replace('_', '-')} part has no position to learn from: {self._packing.num_tokens} "
                "token(s), each the last of its document or not to be learnt; give it more text"
            )
        arrays = {"starts": self._ranges.starts, "edges": self._edges, "samples": np.asarray(self._samples, np.int64)}
        for name, values in arrays.items():
            (self._corpus.folder / f"{self._name}.{name}.i64").write_bytes(values.astype("<i8").tobytes())
        return Part(
            fingerprint=self._fingerprint(arrays),
            num_samples=len(self._samples),
            num_documents=len(self._ranges.starts),
            num_tokens=self._packing.num_tokens,
            num_learnt=sum(int(self._sample(block).mask.sum()) for block in self._samples),
            skipped_samples=self._packing.num_blocks - len(self._samples),
        )

    def _fingerprint(self, arrays: dict[str, NDArray[np.int64]]) -> str:
        from stillhouse.fingerprint import fingerprint

        return fingerprint(
            "data",
            FORMAT_VERSION,
            self._layout.tokenizer_fingerprint,
            self._layout.block_size,
            self._corpus.digest,
            *(values.astype("<i8").tobytes() for values in arrays.values()),
        )
