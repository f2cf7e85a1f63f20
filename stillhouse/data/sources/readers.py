"""One reader per kind of file: text, JSONL, Parquet, token ids. Each streams and never holds a corpus whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from stillhouse.data.items import Item, Place, Text, Tokens
from stillhouse.data.sources.files import READ_BYTES, open_bytes, read_characters, read_lines
from stillhouse.data.sources.records import RecordReader
from stillhouse.data.spec import DataSpec
from stillhouse.errors import DataError

PIECE_CHARACTERS: Final = 1 << 20
"""A longer document is tokenised in pieces of about this many characters, cut at line ends: a bound on memory.

Part of the format: another value would cut, and so tokenise, some documents differently.
"""

TOKEN_BYTES: Final = 4


def read_text(path: Path, spec: DataSpec) -> Iterator[Item]:
    """Yield a text file's documents: the whole file, or what stands between its separators."""
    place = Place(str(path))
    number = 0
    for text, first, last in pieces(read_characters(path), spec.text_separator):
        number += first
        yield Text(Place(str(path), "document", number) if spec.text_separator else place, text, first, last)


def pieces(
    characters: Iterable[str], separator: str | None, limit: int = PIECE_CHARACTERS
) -> Iterator[tuple[str, bool, bool]]:
    """Cut a stream of characters into documents, and those into pieces of at most `limit` characters.

    Yields (text, whether it begins a document, whether it ends it). Where it is cut follows from the characters
    alone, not from how many came at a time. Blank documents between separators are left out.
    """
    buffer, first = "", True
    reach = limit + len(separator or "")
    for more in characters:
        buffer += more
        start = 0
        while True:
            found = buffer.find(separator, start, start + reach) if separator else -1
            if found >= 0:
                end, last, skip = found, True, len(separator or "")
            elif len(buffer) - start > reach:
                end, last, skip = _cut(buffer, start, start + limit), False, 0
            else:
                break
            text = buffer[start:end]
            start = end + skip
            if not (first and last and not text.strip()):
                yield text, first, last
            first = last
        buffer = buffer[start:]
    if not first or buffer.strip():
        yield buffer, first, True


def _cut(text: str, start: int, end: int) -> int:
    for mark in ("\n", " "):
        found = text.rfind(mark, start, end)
        if found > start:
            # A newline stays with the line that it ends, a space with the word that it begins.
            return found + (mark == "\n")
    return end


def read_jsonl(path: Path, spec: DataSpec) -> Iterator[Item]:
    """Yield what the lines of a JSONL file hold."""
    reader = RecordReader(spec)
    for number, line in read_lines(path):
        place = Place(str(path), "line", number)
        try:
            record = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}, column {error.colno}: not JSON ({error.msg}); each line must be one JSON object"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON that can be read ({error})") from error
        yield reader.item(record, place)


def read_parquet(path: Path, spec: DataSpec) -> Iterator[Item]:
    """Yield what the rows of a Parquet file hold; only the columns that are needed are read."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'stillhouse[student]'") from error
    reader = RecordReader(spec)
    number = 0
    with open_bytes(path) as stream:
        try:
            with parquet.ParquetFile(stream) as table:
                columns = reader.columns(table.schema_arrow.names, Place(str(path)))
                for batch in table.iter_batches(batch_size=256, columns=list(columns)):
                    for record in batch.to_pylist():
                        number += 1
                        yield reader.item(record, Place(str(path), "row", number))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a Parquet file that can be read ({error}); write it anew") from error


def read_tokens(path: Path, _spec: DataSpec) -> Iterator[Item]:
    """Yield a shard's little-endian u32 token ids, some at a time."""
    place = Place(str(path))
    with open_bytes(path) as stream:
        offset, rest = 0, b""
        while True:
            data = stream.read(READ_BYTES)
            whole = rest + data
            used = len(whole) // TOKEN_BYTES * TOKEN_BYTES
            rest = whole[used:]
            if not data and rest:
                size = offset * TOKEN_BYTES + len(rest)
                raise DataError(
                    f"{path}, byte {size - len(rest)}: {size} bytes are no whole number of 4-byte ids; it was cut off, "
                    "or holds ids of another width (.bin shards hold little-endian u32)"
                )
            token_ids = np.frombuffer(whole[:used], dtype="<u4").astype(np.uint32, copy=False)
            yield Tokens(place, token_ids, offset, last=not data)
            offset += len(token_ids)
            if not data:
                return
