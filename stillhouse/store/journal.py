"""The answers of a shard that is not complete yet: a file of frames that are only ever added.

A frame is a sample and its answer, with a checksum. A process that is killed, or a power cut, leaves at most a frame
that is not whole, or none of the last ones; reading takes the frames up to the first that is not sound and cuts the
rest off, so that what was lost is asked for again. Its bytes are nobody's format but this module's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from stillhouse.codec import decode_payload, encode_payload
from stillhouse.data.packing import Sample
from stillhouse.errors import CodecError
from stillhouse.payloads import Payload

_MAGIC: Final = b"SHJ1"

# Magic, index of the sample, tokens, segments, bytes of the payload; then the checksum of these and of what follows.
_FIELDS: Final = struct.Struct("<4sQIIQ")
_CHECKSUM: Final = struct.Struct("<Q")
_HEADER_BYTES: Final = _FIELDS.size + _CHECKSUM.size


class Journal:
    """The frames of one shard; opening it reads over what is there."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin one.

        Raises:
            OSError: it cannot be read or written.
        """
        self.path = path
        self._frames: dict[int, tuple[int, int]] = {}
        self._end = 0
        self._file = path.open("r+b" if path.exists() else "w+b")
        for index, start, size in self._sound_frames():
            self._frames[index] = (start, size)
            self._end = start + size
        self._file.truncate(self._end)

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, index: int) -> bool:
        return index in self._frames

    def add(self, index: int, sample: Sample, payload: Payload) -> None:
        """Add a frame; it is in the operating system's hands when this returns.

        Raises:
            OSError: it cannot be written; the journal is then as it was before.
        """
        frame = _frame(index, sample, payload)
        try:
            self._file.seek(self._end)
            self._file.write(frame)
            self._file.flush()
        except OSError:
            self._restore()
            raise
        self._frames[index] = (self._end, len(frame))
        self._end += len(frame)

    def read(self, index: int) -> tuple[Sample, Payload]:
        """Return the sample and the answer of a frame.

        Raises:
            CodecError: its bytes are no longer those that were written.
            OSError: it cannot be read.
        """
        start, size = self._frames[index]
        self._file.seek(start)
        frame = self._file.read(size)
        if _size_of(frame, index) != size:
            raise CodecError(f"{self.path}: the frame of sample {index} was altered")
        return _parse(frame)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def remove(self) -> None:
        """Close the file and remove it."""
        self.close()
        self.path.unlink()

    def _restore(self) -> None:
        # The buffer still holds the frame, or a part of it, and would try to write it again: start with a new one.
        descriptor = os.dup(self._file.fileno())
        try:
            self._file.detach()
        finally:
            self._file = os.fdopen(descriptor, "r+b")
        os.ftruncate(descriptor, self._end)

    def _sound_frames(self) -> Iterator[tuple[int, int, int]]:
        """Yield the index, the start and the size of each frame up to the first that is not sound."""
        start = 0
        total = os.fstat(self._file.fileno()).st_size
        while start + _HEADER_BYTES <= total:
            self._file.seek(start)
            header = self._file.read(_HEADER_BYTES)
            magic, index, tokens, segments, payload_bytes = _FIELDS.unpack_from(header)
            size = _HEADER_BYTES + _body_bytes(tokens, segments, payload_bytes)
            if magic != _MAGIC or start + size > total:
                return
            if _size_of(header + self._file.read(size - _HEADER_BYTES), index) != size:
                return
            yield index, start, size
            start += size


def _frame(index: int, sample: Sample, payload: Payload) -> bytes:
    data = encode_payload(payload)
    body = b"".join(
        (
            sample.token_ids.astype("<u4").tobytes(),
            sample.labels.astype("<i4").tobytes(),
            sample.mask.astype("u1").tobytes(),
            np.asarray(sample.segment_lengths, "<u4").tobytes(),
            data,
        )
    )
    fields = _FIELDS.pack(_MAGIC, index, len(sample.token_ids), len(sample.segment_lengths), len(data))
    return fields + _CHECKSUM.pack(_checksum(fields, body)) + body


def _body_bytes(tokens: int, segments: int, payload_bytes: int) -> int:
    return 9 * tokens + 4 * segments + payload_bytes


def _size_of(frame: bytes, index: int) -> int:
    """Return the size of a frame of this sample that is whole and sound, or 0."""
    if len(frame) < _HEADER_BYTES:
        return 0
    _, found, tokens, segments, payload_bytes = _FIELDS.unpack_from(frame)
    (checksum,) = _CHECKSUM.unpack_from(frame, _FIELDS.size)
    size = _HEADER_BYTES + _body_bytes(tokens, segments, payload_bytes)
    is_sound = found == index and len(frame) == size
    return size if is_sound and checksum == _checksum(frame[: _FIELDS.size], frame[_HEADER_BYTES:]) else 0


def _parse(frame: bytes) -> tuple[Sample, Payload]:
    _, _, tokens, segments, _ = _FIELDS.unpack_from(frame)
    edges = np.cumsum([_HEADER_BYTES, 4 * tokens, 4 * tokens, tokens, 4 * segments]).tolist()
    ids, labels, mask, lengths = (frame[a:b] for a, b in pairwise(edges))
    sample = Sample(
        token_ids=np.frombuffer(ids, "<u4"),
        labels=np.frombuffer(labels, "<i4").astype(np.int64),
        mask=np.frombuffer(mask, "u1").astype(np.bool_),
        segment_lengths=tuple(np.frombuffer(lengths, "<u4").tolist()),
    )
    return sample, decode_payload(frame[edges[-1] :])


def _checksum(fields: bytes, body: bytes) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(body)
    return digest.intdigest()
