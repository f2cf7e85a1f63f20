"""Logits or hidden states -> payload, by row chunks.

Whoever computes logits hands them over chunk by chunk; each chunk is reduced to what travels and moved to the host
before the next is asked for, so that a device never holds a whole answer. Statistics are float32, whatever the
logits' dtype. Knows nothing of bytes, batches or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse import draws
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import EncodingNotOfferedError, InvalidRequestError, TeacherInternalError
from stillhouse.finite import all_finite
from stillhouse.head_and_tail import head_and_tail, top_k_ids
from stillhouse.host_copy import copy_to_host, on_host
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import Sequence
from stillhouse.tensor_bytes import DTYPES

# The logits that are worked on at once: on the host few enough for its caches, on a device enough to fill it. They
# bound what encoding needs beside its chunk, to some 8 times as many bytes in float32 and 40 times in float64 (draws);
# by the programs for a GPU, to as many bytes, and 24 times for draws.
_HOST_BLOCK_ELEMENTS = 2**18
_DEVICE_BLOCK_ELEMENTS = 2**26

_LARGEST = {dtype: torch.finfo(dtype).max for dtype in (*DTYPES.values(), torch.float64)}


def encode_logits(
    row_chunks: Iterable[Tensor],
    encoding: Encoding,
    *,
    sequence: Sequence,
    temperature: float,
    vocabulary_size: int,
    into: Payload | None = None,
) -> Payload:
    """Return the payload of one sequence, on the host.

    Args:
        row_chunks: `[p, V]` floating-point tensors on any device, the rows of all positions that the sequence asks
            about, in order; V at least N. They are read, never changed.
        encoding: the form of the answer.
        sequence: what is asked about: how many positions, the candidates of each, and the content that draws follow
            from.
        temperature: T of the tempered statistics, above 0.
        vocabulary_size: N, at least 1: only the ids below it count.
        into: a payload of the kind and shapes that come out, whose tensors are filled in place of new ones; not for
            SAMPLED, whose shapes follow from the draws.

    Raises:
        InvalidRequestError: an id or a k beyond N, a finite logit that float16 or bfloat16 would turn into an infinity,
            or that the temperature would.
        EncodingNotOfferedError: HIDDEN, which is not made from logits.
        TeacherInternalError: a NaN, +inf, or a row all -inf among the logits.
        ValueError: chunks that are not `[p, V >= N]`, or that do not add up to the positions asked for.
    """
    num_positions, temperature = sequence.num_positions, float(temperature)
    width = encoding.draws if isinstance(encoding, Sampled) else 1
    blocks = _blocks(_checked(row_chunks, vocabulary_size), num_positions, max(width, vocabulary_size))
    match encoding:
        case Dense(value_type):
            columns = {"logits": _Column((vocabulary_size,), DTYPES[value_type])}
            rows = _collect(blocks, columns, lambda x, _: (_cast(x, "dense", value_type),), num_positions, into)
            return DenseLogits(rows["logits"])
        case TopK(k, value_type):
            if k > vocabulary_size:
                raise InvalidRequestError(f"top_k.k must be at most the vocabulary size {vocabulary_size}; got {k}")
            columns = {"token_ids": _Column((k,), torch.int32), **_named_columns(k, value_type)}
            rows = _collect(blocks, columns, lambda x, _: _top_k(x, k, value_type, temperature), num_positions, into)
            return TopKLogits(**rows, temperature=temperature, vocabulary_size=vocabulary_size)
        case Candidates(token_ids, value_type):
            ids = _candidate_ids(token_ids, sequence, vocabulary_size)
            if isinstance(into, CandidateLogits):
                ids = into.token_ids.copy_(ids)

            def named(x_PN: Tensor, rows: slice) -> tuple[Tensor, ...]:
                ids_PK = (ids if ids.dim() == 1 else ids[rows]).to(x_PN.device, torch.int64).expand(len(x_PN), -1)
                return _named(x_PN, ids_PK, "candidates", value_type, temperature)

            rows = _collect(blocks, _named_columns(ids.shape[-1], value_type), named, num_positions, into)
            return CandidateLogits(ids, **rows, temperature=temperature, vocabulary_size=vocabulary_size)
        case Sampled(num_draws, seed):
            return _sampled(blocks, sequence, num_draws, seed, temperature, vocabulary_size)
        case Hidden():
            raise EncodingNotOfferedError("encoding Hidden is not made from logits: see encode_hidden")


def encode_hidden(hidden_rows: Tensor, encoding: Hidden, into: Payload | None = None) -> HiddenStates:
    """Return the payload of one sequence's final hidden states `[P, D]`, on the host; they are read, never changed.

    `into` as in `encode_logits`.

    Raises:
        InvalidRequestError: a value that bfloat16 would turn into an infinity.
        TeacherInternalError: a NaN or an infinity among them.
        ValueError: not a floating-point `[P, D]`.
    """
    if hidden_rows.dim() != 2 or not hidden_rows.is_floating_point():
        got = f"{hidden_rows.dtype} {list(hidden_rows.shape)}"
        raise ValueError(f"hidden_rows must be floating-point [P, D]; got {got}")
    rows = hidden_rows.detach()
    bad = ~torch.isfinite(rows).all(dim=1)
    if bad.any():
        raise TeacherInternalError(
            f"the teacher's hidden state at row {int(bad.nonzero()[0])} holds a NaN or an infinity: "
            "its weights are damaged, or its compute dtype is too narrow for it (try float32)"
        )
    # A copy also where nothing is cast: the rows may be a view of a batch, which would be kept alive whole.
    cast = _cast(rows, "hidden", encoding.value_type)
    if not isinstance(into, HiddenStates):
        return HiddenStates(on_host(cast))
    copy_to_host(cast, into.hidden)
    return into


def _candidate_ids(token_ids: tuple[int, ...], sequence: Sequence, vocabulary_size: int) -> Tensor:
    """Return the ids that are named, `[K]` or `[P, K]` int32."""
    field, asked = ("candidates.token_ids", (token_ids,)) if token_ids else ("candidate_ids", sequence.candidate_ids)
    if not asked:
        raise InvalidRequestError("candidate_ids must name ids for each position, as candidates.token_ids names none")
    largest = max(ids[-1] for ids in asked)
    if largest >= vocabulary_size:
        raise InvalidRequestError(f"{field} must be below the vocabulary size {vocabulary_size}; got {largest}")
    return torch.tensor(token_ids or asked, dtype=torch.int32)


def _sampled(
    blocks: Iterator[tuple[Tensor, slice]],
    sequence: Sequence,
    num_draws: int,
    seed: int,
    temperature: float,
    vocabulary_size: int,
) -> SampledCounts:
    key, positions = draws.content_key(sequence, seed), sequence.position_indices()
    offsets = torch.zeros(len(positions) + 1, dtype=torch.int64)
    entropy = torch.empty(len(positions))
    # Filled in place: what outlives a chunk, put beside it, would keep its memory from being used for the next.
    ids, counts = torch.empty(2, len(positions) * min(num_draws, vocabulary_size), dtype=torch.int32)
    end = 0
    for x_PN, rows in blocks:
        uniforms_PS = draws.uniforms(key, positions[rows], num_draws)
        ids_PS, entropy[rows] = draws.draw(x_PN, uniforms_PS, temperature)
        entries, block_ids, block_counts = draws.distinct(ids_PS)
        offsets[1:][rows] = entries
        start, end = end, end + len(block_ids)
        ids[start:end], counts[start:end] = block_ids, block_counts
    return SampledCounts(
        offsets.cumsum(0), ids[:end].clone(), counts[:end].clone(), entropy, num_draws, temperature, vocabulary_size
    )


@dataclass(frozen=True, slots=True)
class _Column:
    """What one tensor of a payload holds for each position."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


def _named_columns(count: int, value_type: ValueType) -> dict[str, _Column]:
    """Return the columns that `_named` fills, in its order."""
    return {
        "logits": _Column((count,), DTYPES[value_type]),
        "log_normalizer": _Column(),
        "log_tail_mass": _Column(),
        "tempered_log_normalizer": _Column(),
        "tempered_log_tail_mass": _Column(),
    }


def _collect(
    blocks: Iterator[tuple[Tensor, slice]],
    columns: dict[str, _Column],
    reduce: Callable[[Tensor, slice], tuple[Tensor, ...]],
    num_positions: int,
    into: Payload | None,
) -> dict[str, Tensor]:
    """Reduce each block and lay the results end to end on the host, by the name of their column."""
    if into is None:
        whole = {name: torch.empty(num_positions, *c.shape, dtype=c.dtype) for name, c in columns.items()}
    else:
        whole = {name: getattr(into, name) for name in columns}
    for block, rows in blocks:
        for column, part in zip(whole.values(), reduce(block, rows), strict=True):
            copy_to_host(part, column[rows])
    return whole


def _blocks(chunks: Iterator[Tensor], num_positions: int, width: int) -> Iterator[tuple[Tensor, slice]]:
    """Cut chunks into blocks, each with the rows of the answer that it holds; see that they come to P.

    `width` is how many elements are worked on for each row.
    """
    end = 0
    for chunk in chunks:
        if end + len(chunk) > num_positions:
            raise ValueError(
                f"row_chunks hold at least {end + len(chunk)} rows, where {num_positions} positions are asked for"
            )
        elements = _HOST_BLOCK_ELEMENTS if chunk.device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS
        size = max(1, elements // width)
        for block in [chunk] if len(chunk) <= size else torch.split(chunk, size):
            start, end = end, end + len(block)
            yield block, slice(start, end)
    if end != num_positions:
        raise ValueError(f"row_chunks hold {end} rows, where {num_positions} positions are asked for")


def _checked(row_chunks: Iterable[Tensor], vocabulary_size: int) -> Iterator[Tensor]:
    """Cut each chunk to N and see that softmax has a meaning for every row of it."""
    start = 0
    for chunk in row_chunks:
        if chunk.dim() != 2 or chunk.shape[1] < vocabulary_size or not chunk.is_floating_point():
            raise ValueError(
                f"row_chunks must be floating-point [p, at least {vocabulary_size}]; got {chunk.dtype} "
                f"{list(chunk.shape)}"
            )
        x_PN = chunk.detach()[:, :vocabulary_size]
        if len(x_PN):
            # The largest of a row is NaN where any is, +inf where any is, and -inf where all are.
            largest = x_PN.amax(dim=1).tolist()
            if not all(map(math.isfinite, largest)):
                row = next(index for index, value in enumerate(largest) if not math.isfinite(value))
                raise TeacherInternalError(
                    f"the teacher's logits at row {start + row} hold a NaN or +inf, or are all -inf: "
                    "its weights are damaged, or its compute dtype is too narrow for it (try float32)"
                )
        start += len(x_PN)
        yield x_PN


def _cast(values: Tensor, field: str, value_type: ValueType) -> Tensor:
    cast = values.to(DTYPES[value_type])
    if _LARGEST[cast.dtype] < _LARGEST[values.dtype] and not all_finite(cast):
        overflown = torch.isinf(cast) & torch.isfinite(values)
        if overflown.any():
            largest = float(values[overflown].abs().max())
            raise InvalidRequestError(
                f"{field}.value_type {value_type} cannot hold a value of {largest:g}; ask for float32 instead"
            )
    return cast


def _named(x_PN: Tensor, ids_PK: Tensor, field: str, value_type: ValueType, temperature: float) -> tuple[Tensor, ...]:
    logits_PK, *statistics = head_and_tail(x_PN, ids_PK, temperature)
    if not torch.isfinite(statistics[2]).all():
        raise InvalidRequestError(
            f"temperature must not be so small that the logits divided by it pass float32; got {temperature:g}"
        )
    return (_cast(logits_PK, field, value_type), *statistics)


def _top_k(x_PN: Tensor, k: int, value_type: ValueType, temperature: float) -> tuple[Tensor, ...]:
    ids_PK = top_k_ids(x_PN, k)
    return (ids_PK.int(), *_named(x_PN, ids_PK, "top_k", value_type, temperature))
