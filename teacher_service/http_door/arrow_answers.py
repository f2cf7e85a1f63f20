"""An answer as one Arrow IPC stream: a row for each position, columns by encoding, in batches of about a megabyte.

`pyarrow.ipc.open_stream` reads it with nothing of ours. What holds for all rows is in the schema's metadata. bfloat16,
for which Arrow has no type, is widened to float32, which holds all of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import fields, replace
from itertools import chain

import pyarrow as pa
import torch
from torch import Tensor

from stillhouse.codec import decode_payload
from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK
from stillhouse.payload_header import HEADER_BYTES, Header, Kind, expected_headers
from stillhouse.payloads import (
    CandidateLogits,
    DenseLogits,
    HiddenStates,
    SampledCounts,
    TopKLogits,
    concatenate,
)
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from stillhouse.tensor_bytes import DTYPES
from teacher_service.answering import EncodedAnswer
from teacher_service.http_door.requests import KINDS
from teacher_service.http_door.streaming import PIECE_BYTES

ARROW_TYPE = "application/vnd.apache.arrow.stream"

# What ends a stream: a message of no bytes.
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"

_STATISTICS = ("log_normalizer", "log_tail_mass", "tempered_log_normalizer", "tempered_log_tail_mass")
_VALUES = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.float32()}
_PLACE = tuple(pa.field(name, pa.int32(), nullable=False) for name in ("sequence", "position"))


Column = Callable[[slice], pa.Array]
"""Gives some rows of a column, in memory that lasts as long as they do."""


def arrow_parts(request: LogitsRequest, answer: EncodedAnswer, teacher: TeacherDescription) -> Iterator[bytes]:
    """Yield the messages of the stream: the schema, the record batches, the end."""
    schema = pa.schema([*_PLACE, *_fields(request, teacher)], _metadata(request, answer, teacher))
    yield schema.serialize().to_pybytes()
    headers = expected_headers(request, teacher)
    rows_at_once = max(1, PIECE_BYTES // max(map(_row_bytes, headers), default=1))
    for held in _blocks(headers, rows_at_once):
        places = _places(request.sequences, held)
        answers = _columns([headers[index] for index in held], [answer.payloads[index] for index in held])
        columns = [*(_flat(part) for part in places.T), *answers]
        for start in range(0, len(places), rows_at_once):
            rows = slice(start, min(start + rows_at_once, len(places)))
            batch = pa.record_batch([column(rows) for column in columns], schema=schema)
            yield batch.serialize().to_pybytes()
    yield _END


def _metadata(request: LogitsRequest, answer: EncodedAnswer, teacher: TeacherDescription) -> dict[str, str]:
    parameters = {field.name: getattr(request.encoding, field.name) for field in fields(request.encoding)}
    # They stand in a column.
    parameters.pop("token_ids", None)
    about = {
        "fingerprint": answer.fingerprint,
        "encoding": KINDS[type(request.encoding)],
        **parameters,
        "temperature": request.temperature,
        "vocabulary_size": request.effective_vocabulary_size(teacher.vocabulary_size),
        "sequences": len(request.sequences),
        "cache_hits": answer.cache_hits,
        "queue_seconds": answer.queue_seconds,
        "compute_seconds": answer.compute_seconds,
        "encode_seconds": answer.encode_seconds,
    }
    return {name: value if isinstance(value, str) else repr(value) for name, value in about.items()}


def _fields(request: LogitsRequest, teacher: TeacherDescription) -> list[pa.Field]:
    ids, statistics = pa.int32(), dict.fromkeys(_STATISTICS, pa.float32())
    columns: dict[str, pa.DataType]
    match request.encoding:
        case Dense(value_type):
            size = request.effective_vocabulary_size(teacher.vocabulary_size)
            columns = {"logits": pa.list_(_VALUES[value_type], size)}
        case Hidden(value_type):
            columns = {"hidden": pa.list_(_VALUES[value_type], teacher.hidden_size)}
        case TopK(k, value_type):
            columns = {"token_ids": pa.list_(ids, k), "logits": pa.list_(_VALUES[value_type], k), **statistics}
        case Candidates(_, value_type):
            # How many differs from sequence to sequence, where each names its own.
            columns = {"token_ids": pa.list_(ids), "logits": pa.list_(_VALUES[value_type]), **statistics}
        case Sampled():
            columns = {"token_ids": pa.list_(ids), "counts": pa.list_(ids), "entropy": pa.float32()}
    return [pa.field(name, kind, nullable=False) for name, kind in columns.items()]


def _blocks(headers: SequenceOf[Header], rows_at_once: int) -> Iterator[list[int]]:
    """Yield the indices of all sequences: neighbours that are alike and small together, others alone."""
    held: list[int] = []
    rows = 0
    for index, header in enumerate(headers):
        is_alike = not held or replace(header, rows=0) == replace(headers[held[0]], rows=0)
        if held and not (is_alike and rows + header.rows <= rows_at_once):
            yield held
            held, rows = [], 0
        held.append(index)
        rows += header.rows
    if held:
        yield held


def _places(sequences: SequenceOf[Sequence], held: list[int]) -> Tensor:
    """Return the sequence and the position of each row, `[P, 2]` int32."""
    places = [[(index, position) for position in sequences[index].position_indices()] for index in held]
    return torch.tensor(list(chain.from_iterable(places)), dtype=torch.int32)


def _columns(headers: SequenceOf[Header], payloads: SequenceOf[bytes | memoryview]) -> list[Column]:
    if len(payloads) == 1 and headers[0].kind in (Kind.DENSE, Kind.HIDDEN):
        return [_shared(headers[0], payloads[0])]
    match concatenate(list(map(decode_payload, payloads))):
        case DenseLogits(values) | HiddenStates(values):
            return [_fixed(values)]
        case TopKLogits() as payload:
            return [_fixed(payload.token_ids), _fixed(payload.logits), *_statistics(payload)]
        case CandidateLogits() as payload:
            ids = payload.token_ids.expand(payload.logits.shape)
            return [_lists(ids), _lists(payload.logits), *_statistics(payload)]
        case SampledCounts() as payload:
            counts = _ragged(payload.counts, payload.offsets)
            return [_ragged(payload.token_ids, payload.offsets), counts, _flat(payload.entropy)]


def _shared(header: Header, data: bytes | memoryview) -> Column:
    """Read rows out of the payload's bytes as they are: to decode them would copy the largest answers there are."""
    values = memoryview(data)[HEADER_BYTES:]
    row_bytes = len(values) // header.rows
    dtype = DTYPES[header.value_type or "float32"]

    def some(rows: slice) -> pa.Array:
        part = bytearray(values[rows.start * row_bytes : rows.stop * row_bytes])
        return pa.FixedSizeListArray.from_arrays(_array(torch.frombuffer(part, dtype=dtype)), header.width)

    return some


def _statistics(payload: TopKLogits | CandidateLogits) -> list[Column]:
    return [_flat(getattr(payload, name)) for name in _STATISTICS]


def _flat(tensor: Tensor) -> Column:
    return lambda rows: _array(tensor[rows])


def _fixed(tensor: Tensor) -> Column:
    return lambda rows: pa.FixedSizeListArray.from_arrays(_array(tensor[rows]), tensor.shape[1])


def _lists(tensor: Tensor) -> Column:
    width = tensor.shape[1]
    return lambda rows: pa.ListArray.from_arrays(
        _array(torch.arange(0, (rows.stop - rows.start + 1) * width, width).int()), _array(tensor[rows])
    )


def _ragged(entries: Tensor, offsets: Tensor) -> Column:
    def some(rows: slice) -> pa.Array:
        ends = offsets[rows.start : rows.stop + 1]
        return pa.ListArray.from_arrays(_array((ends - ends[0]).int()), _array(entries[int(ends[0]) : int(ends[-1])]))

    return some


def _array(tensor: Tensor) -> pa.Array:
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return pa.array(tensor.reshape(-1).numpy())


def _row_bytes(header: Header) -> int:
    """Return about the most bytes of one row as Arrow; bfloat16 grows, and so do ids that all rows share."""
    return 2 * (header.size_bounds()[1] // max(1, header.rows) + 1)
