"""Bytes out of a file, whatever it is compressed with, and characters and lines out of bytes.

Every fault of a file becomes a `DataError` that names the file and the place in it. Nothing is read whole.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from stillhouse.errors import DataError

READ_BYTES: Final = 1 << 20
"""Bytes read at a time."""

MAX_LINE_BYTES: Final = 256 << 20
"""The longest line of JSON that is read: a bound on memory, far above any document worth training on."""

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed by its ending (.gz, .zst).

    Raises:
        DataError: the file cannot be opened, is empty, or its compressed data ends early or is damaged; also while
            the body of the `with` reads from it.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; remove it from the sources or give it content")
        with _opened(path) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the compressed data is cut off or damaged ({error}); compress the file anew"
        ) from error
    except OSError as error:
        if path.suffix in COMPRESSIONS and error.errno is None:
            raise DataError(
                f"{path}: the compressed data is cut off or damaged ({error}); compress the file anew"
            ) from error
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    match COMPRESSIONS.get(path.suffix):
        case "gzip":
            with gzip.open(path, "rb") as stream:
                yield cast("BinaryIO", stream)
        case "zstd":
            try:
                from pyarrow import input_stream
            except ImportError as error:
                raise DataError(f"{path}: .zst needs pyarrow: pip install 'stillhouse[student]'") from error
            with input_stream(str(path), compression="zstd") as raw, io.BufferedReader(raw) as stream:
                yield cast("BinaryIO", stream)
        case _:
            with path.open("rb") as stream:
                yield stream


def read_characters(path: Path) -> Iterator[str]:
    """Yield a text file's characters, some at a time, with no byte-order mark and with its line ends as they are.

    Raises:
        DataError: the file cannot be read, or is not UTF-8; the message names the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with open_bytes(path) as stream:
        while True:
            data = stream.read(READ_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise not_utf8(path, position - pending + error.start, error) from error
            if position == 0:
                text = text.removeprefix("\ufeff")
            position += len(data)
            if text:
                yield text
            if not data:
                return


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's lines that are not blank, with their numbers from 1.

    Raises:
        DataError: the file cannot be read, a line is too long, or is not UTF-8.
    """
    position = 0
    with open_bytes(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; write one record per line"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, position + error.start, error, line=number) from error
            position += len(line)
            if text.strip():
                yield number, text


def not_utf8(path: Path, position: int, error: UnicodeDecodeError, line: int | None = None) -> DataError:
    """Return the error for a byte that is no UTF-8."""
    where = f"{path}, {f'line {line}, ' if line else ''}byte {position}"
    byte = error.object[error.start]
    hint = "convert it, e.g. with `iconv -f latin1 -t utf-8`"
    if position <= 1 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        hint = "it looks like UTF-16: convert it with `iconv -f utf-16 -t utf-8`"
    elif position <= 1 and error.object[:2] == b"\x1f\x8b":
        hint = "it looks like gzip: end its name in .gz"
    elif error.object[:4] == b"\x28\xb5\x2f\xfd":
        hint = "it looks like zstd: end its name in .zst"
    return DataError(f"{where}: not UTF-8 (byte 0x{byte:02x}, {error.reason}); {hint}")
