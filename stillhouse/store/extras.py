"""What stands beside the shards: the teacher's tokens, and for HIDDEN its output head. Both halves.

The head's numbers stand in one entry of the file's metadata: safetensors writes several in any order.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from stillhouse.errors import StoreError
from stillhouse.payloads import OutputHead
from stillhouse.store.checking import fault_of
from stillhouse.store.files import OUTPUT_HEAD, TOKENS, StoreFiles, writing, written_aside
from stillhouse.store.manifest import WrittenFile

_HEAD_KEY: Final = "stillhouse.output_head"


def write_tokens(folder: Path, tokens: SequenceOf[str]) -> None:
    """Write a tokenizer's tokens, in the order of their ids."""
    table = pa.table({"token": pa.array(tokens, pa.string())})
    with written_aside(folder / TOKENS) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            column_encoding={"token": "DELTA_LENGTH_BYTE_ARRAY"},
            write_statistics=False,
            store_schema=False,
        )


def read_tokens(files: StoreFiles, entry: WrittenFile) -> tuple[str, ...]:
    """Return the tokens in the order of their ids, having compared the file with its entry of the manifest.

    Raises:
        StoreError: they are missing, altered, or cannot be read.
    """
    data = _checked(files, TOKENS, entry)
    try:
        # By this thread alone: one of Arrow's that lets go of the bytes while Python ends would abort the process.
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
            table = file.read(columns=["token"], use_threads=False)
        return tuple(table.column("token").to_pylist())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{files.name}: {TOKENS} cannot be read: {error}; copy it again") from error


def write_output_head(folder: Path, head: OutputHead) -> None:
    """Write an output head as it is, on whichever device."""
    tensors = {"weight": head.weight, **({} if head.bias is None else {"bias": head.bias})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    numbers = json.dumps({"scale": head.scale, "soft_cap": head.soft_cap})
    with written_aside(folder / OUTPUT_HEAD) as file, writing(folder / OUTPUT_HEAD):
        try:
            save_file(tensors, file.name, metadata={_HEAD_KEY: numbers})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_output_head(files: StoreFiles, entry: WrittenFile) -> OutputHead:
    """Return the output head, on the host, having compared the file with its entry of the manifest.

    Raises:
        StoreError: it is missing, altered, or cannot be read.
    """
    data = _checked(files, OUTPUT_HEAD, entry)
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        numbers = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEAD_KEY])
        return OutputHead(tensors["weight"], tensors.get("bias"), numbers["scale"], numbers["soft_cap"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{files.name}: {OUTPUT_HEAD} cannot be read: {error}; copy it again") from error


def _checked(files: StoreFiles, name: str, entry: WrittenFile) -> bytes:
    try:
        data = files.read(name)
    except FileNotFoundError as error:
        raise StoreError(f"{files.name}: {name} is missing; copy it again") from error
    if fault := fault_of(name, io.BytesIO(data), entry):
        raise StoreError(f"{files.name}: {fault}; copy it again")
    return data
