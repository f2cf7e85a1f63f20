"""Samples and payloads <-> columns of Parquet, one row a sample: both halves, exact to the bit.

docs/store-format.md is the specification. Floating point values that no reader of Parquet knows (bfloat16) are kept
as their 16 bits. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from stillhouse.data.packing import Sample
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.payloads import (
    CandidateLogits,
    DenseLogits,
    HiddenStates,
    Payload,
    SampledCounts,
    TopKLogits,
)

Array = npt.NDArray[Any]

SAMPLE_COLUMNS: Final = ("sample_index", "token_ids", "labels", "mask", "segment_lengths")

STATISTICS: Final = ("log_normalizer", "log_tail_mass")
TEMPERED: Final = ("tempered_log_normalizer", "tempered_log_tail_mass")

_ARROW_VALUES: Final[dict[ValueType, pa.DataType]] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
}


def sample_schema() -> pa.Schema:
    """Return the columns of what was asked about."""
    return pa.schema(
        [
            pa.field("sample_index", pa.int64(), nullable=False),
            pa.field("token_ids", _list(pa.uint32()), nullable=False),
            pa.field("labels", _list(pa.int32()), nullable=False),
            pa.field("mask", _list(pa.bool_()), nullable=True),
            pa.field("segment_lengths", _list(pa.int32()), nullable=False),
        ]
    )


def payload_schema(encoding: Encoding) -> pa.Schema:
    """Return the columns of the answers."""
    match encoding:
        case Dense(value_type):
            return pa.schema([_nested("logits", _ARROW_VALUES[value_type])])
        case Hidden(value_type):
            return pa.schema([_nested("hidden", _ARROW_VALUES[value_type])])
        case TopK(_, value_type):
            fields = [_nested("ids", pa.int32()), _nested("logits", _ARROW_VALUES[value_type])]
            return pa.schema([*fields, *_statistics()])
        case Sampled():
            fields = [_nested("ids", pa.int32()), _nested("counts", pa.int32())]
            return pa.schema([*fields, pa.field("entropy", _list(pa.float32()), nullable=False)])
        case Candidates(token_ids, value_type):
            ids = () if token_ids else (_nested("ids", pa.int32()),)
            return pa.schema([*ids, _nested("logits", _ARROW_VALUES[value_type]), *_statistics()])


def _list(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", item, nullable=False))


def _nested(name: str, item: pa.DataType) -> pa.Field:
    return pa.field(name, _list(_list(item)), nullable=False)


def _statistics() -> list[pa.Field]:
    # Those at the temperature stand where they are not those at 1.
    return [
        *(pa.field(name, _list(pa.float32()), nullable=False) for name in STATISTICS),
        *(pa.field(name, _list(pa.float32()), nullable=True) for name in TEMPERED),
    ]


def sample_arrays(indices: SequenceOf[int], samples: SequenceOf[Sample]) -> list[pa.Array]:
    """Return the columns of samples, in the order of `sample_schema`."""
    lengths = [len(sample.token_ids) for sample in samples]
    masks = [np.zeros(0, np.bool_) if sample.mask.all() else sample.mask for sample in samples]
    return [
        pa.array(indices, pa.int64()),
        _list_array(lengths, np.concatenate([sample.token_ids for sample in samples]), pa.uint32()),
        _list_array(lengths, np.concatenate([sample.labels for sample in samples]).astype(np.int32), pa.int32()),
        _list_array(
            [len(mask) for mask in masks], np.concatenate(masks), pa.bool_(), absent=[not len(m) for m in masks]
        ),
        _list_array(
            [len(sample.segment_lengths) for sample in samples],
            np.concatenate([np.asarray(sample.segment_lengths, np.int32) for sample in samples]),
            pa.int32(),
        ),
    ]


def payload_arrays(payloads: SequenceOf[Any], encoding: Encoding) -> list[pa.Array]:
    """Return the columns of payloads, all of which answer one encoding, in the order of `payload_schema`."""
    rows = [payload.num_positions for payload in payloads]
    match payloads[0]:
        case DenseLogits():
            return [_nested_array(rows, [p.logits for p in payloads])]
        case HiddenStates():
            return [_nested_array(rows, [p.hidden for p in payloads])]
        case SampledCounts():
            widths = np.concatenate([_host(p.offsets.diff()) for p in payloads])
            return [
                _nested_array(rows, [p.token_ids for p in payloads], widths),
                _nested_array(rows, [p.counts for p in payloads], widths),
                _list_array(rows, _joined([p.entropy for p in payloads]), pa.float32()),
            ]
        case _:
            shared = isinstance(encoding, Candidates) and bool(encoding.token_ids)
            ids = [] if shared else [_nested_array(rows, [p.token_ids for p in payloads])]
            return [*ids, _nested_array(rows, [p.logits for p in payloads]), *_statistic_arrays(rows, payloads)]


def _statistic_arrays(rows: list[int], payloads: SequenceOf[Any]) -> list[pa.Array]:
    arrays = [_list_array(rows, _joined([getattr(p, name) for p in payloads]), pa.float32()) for name in STATISTICS]
    absent = [
        all(_same_bits(getattr(p, a), getattr(p, b)) for a, b in zip(STATISTICS, TEMPERED, strict=True))
        for p in payloads
    ]
    kept = [p for p, is_absent in zip(payloads, absent, strict=True) if not is_absent]
    lengths = [0 if is_absent else count for count, is_absent in zip(rows, absent, strict=True)]
    for name in TEMPERED:
        values = _joined([getattr(p, name) for p in kept]) if kept else np.zeros(0, np.float32)
        arrays.append(_list_array(lengths, values, pa.float32(), absent=absent))
    return arrays


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def _list_array(
    lengths: SequenceOf[int] | Array,
    values: Array | pa.Array,
    item: pa.DataType,
    absent: SequenceOf[bool] | None = None,
) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    items = values if isinstance(values, pa.Array) else pa.array(values, item)
    missing = None if absent is None else pa.array(absent, pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=_list(items.type), mask=missing)


def _nested_array(rows: list[int], tensors: SequenceOf[Tensor], widths: Array | None = None) -> pa.Array:
    values = _values_array(tensors)
    if widths is None:
        # A payload of no rows has a width all the same.
        widths = np.concatenate([np.full(len(tensor), tensor.shape[1], np.int64) for tensor in tensors])
    return _list_array(rows, _list_array(widths, values, values.type), values.type)


def _values_array(tensors: SequenceOf[Tensor]) -> pa.Array:
    if tensors[0].dtype == torch.bfloat16:
        return pa.array(_joined([tensor.contiguous().view(torch.int16) for tensor in tensors]).view(np.uint16))
    return pa.array(_joined(tensors))


def _joined(tensors: SequenceOf[Tensor]) -> Array:
    return np.concatenate([_host(tensor).reshape(-1) for tensor in tensors])


def _host(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array


class Columns:
    """The columns of some rows, as they were read, of which single rows are taken."""

    def __init__(self, columns: Mapping[str, pa.Array]) -> None:
        self._columns = {name: _Lists(column) for name, column in columns.items()}

    @property
    def num_bytes(self) -> int:
        """What it holds in memory."""
        return sum(lists.num_bytes for lists in self._columns.values())

    def sample(self, row: int) -> Sample:
        """Return the sample of a row."""
        ids = self._values("token_ids", row)
        mask = self._columns["mask"]
        return Sample(
            token_ids=ids,
            labels=self._values("labels", row).astype(np.int64),
            mask=np.ones(len(ids), np.bool_) if mask.is_absent(row) else self._values("mask", row),
            segment_lengths=tuple(self._values("segment_lengths", row).tolist()),
        )

    def sample_index(self, row: int) -> int:
        """Return the index that a row says it has."""
        return int(self._columns["sample_index"].values[row])

    def payload(self, row: int, encoding: Encoding, *, temperature: float, vocabulary_size: int) -> Payload:
        """Return the answer of a row."""
        common: dict[str, Any] = {"temperature": temperature, "vocabulary_size": vocabulary_size}
        match encoding:
            case Dense(value_type):
                return DenseLogits(self._matrix("logits", row, value_type, vocabulary_size))
            case Hidden(value_type):
                return HiddenStates(self._matrix("hidden", row, value_type))
            case TopK(k, value_type):
                ids, logits = self._matrix("ids", row, None, k), self._matrix("logits", row, value_type, k)
                return TopKLogits(ids, logits, **self._statistics(row), **common)
            case Candidates(token_ids, value_type):
                logits = self._matrix("logits", row, value_type)
                ids = torch.tensor(token_ids, dtype=torch.int32) if token_ids else self._matrix("ids", row, None)
                return CandidateLogits(ids, logits, **self._statistics(row), **common)
            case Sampled(draws, _):
                offsets, drawn = self._columns["ids"].ragged(row)
                _, counts = self._columns["counts"].ragged(row)
                return SampledCounts(
                    offsets=torch.from_numpy(offsets),
                    token_ids=torch.from_numpy(drawn),
                    counts=torch.from_numpy(counts),
                    entropy=torch.from_numpy(self._values("entropy", row)),
                    draws=draws,
                    **common,
                )

    def _statistics(self, row: int) -> dict[str, Any]:
        found = {name: torch.from_numpy(self._values(name, row)) for name in STATISTICS}
        for plain, name in zip(STATISTICS, TEMPERED, strict=True):
            absent = self._columns[name].is_absent(row)
            found[name] = found[plain].clone() if absent else torch.from_numpy(self._values(name, row))
        return found

    def _values(self, name: str, row: int) -> Array:
        return self._columns[name].row(row)

    def _matrix(self, name: str, row: int, value_type: ValueType | None, width: int | None = None) -> Tensor:
        offsets, values = self._columns[name].ragged(row)
        rows = len(offsets) - 1
        if value_type == "bfloat16":
            tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(values)
        return tensor.view(rows, -1) if rows else tensor.view(0, width or 0)


class _Lists:
    """One column: plain, or of lists, or of lists of lists. What is taken of it is a copy."""

    def __init__(self, column: pa.Array) -> None:
        self.num_bytes = column.nbytes
        self._absent = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
        self._offsets: list[Array] = []
        while pa.types.is_list(column.type):
            self._offsets.append(column.offsets.to_numpy())
            column = column.values
        self.values: Array = column.to_numpy(zero_copy_only=False)

    def is_absent(self, row: int) -> bool:
        return self._absent is not None and bool(self._absent[row])

    def row(self, row: int) -> Array:
        start, end = self._offsets[0][row : row + 2]
        return self.values[start:end].copy()

    def ragged(self, row: int) -> tuple[Array, Array]:
        start, end = self._offsets[0][row : row + 2]
        edges = self._offsets[1][start : end + 1].astype(np.int64)
        return edges - edges[0], self.values[edges[0] : edges[-1]].copy()
