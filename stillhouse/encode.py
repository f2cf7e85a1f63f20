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

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import EncodingNotOfferedError, InvalidRequestError, TeacherInternalError
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, TopKLogits
from stillhouse.request import Sequence
from stillhouse.tensor_bytes import DTYPES


def encode_logits(
    row_chunks: Iterable[Tensor],
    encoding: Encoding,
    *,
    sequence: Sequence,
    temperature: float,
    vocabulary_size: int,
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

    Raises:
        InvalidRequestError: an id or a k beyond N, a finite logit that float16 or bfloat16 would turn into an infinity.
        EncodingNotOfferedError: HIDDEN, which is not made from logits.
        TeacherInternalError: a NaN, +inf, or a row all -inf among the logits.
        ValueError: chunks that are not `[p, V >= N]`, or that do not add up to the positions asked for.
    """
    num_positions, temperature = sequence.num_positions, float(temperature)
    chunks = _numbered(_checked(row_chunks, vocabulary_size), num_positions)
    match encoding:
        case Dense(value_type):
            columns = {"logits": _Column((vocabulary_size,), DTYPES[value_type])}
            rows = _collect(chunks, columns, lambda x, _: (_cast(x, "dense", value_type),), num_positions)
            return DenseLogits(rows["logits"])
        case TopK(k, value_type):
            if k > vocabulary_size:
                raise InvalidRequestError(f"top_k.k must be at most the vocabulary size {vocabulary_size}; got {k}")
            columns = {"token_ids": _Column((k,), torch.int32), **_named_columns(k, value_type)}
            rows = _collect(chunks, columns, lambda x, _: _top_k(x, k, value_type, temperature), num_positions)
            return TopKLogits(**rows, temperature=temperature, vocabulary_size=vocabulary_size)
        case Candidates(token_ids, value_type):
            ids = _candidate_ids(token_ids, sequence, vocabulary_size)

            def named(x_PN: Tensor, rows: slice) -> tuple[Tensor, ...]:
                ids_PK = (ids if ids.dim() == 1 else ids[rows]).to(x_PN.device, torch.int64).expand(len(x_PN), -1)
                return _named(x_PN, ids_PK, "candidates", value_type, temperature)

            rows = _collect(chunks, _named_columns(ids.shape[-1], value_type), named, num_positions)
            return CandidateLogits(ids, **rows, temperature=temperature, vocabulary_size=vocabulary_size)
        case Sampled():
            raise EncodingNotOfferedError("encoding Sampled is not offered: use Dense or TopK")
        case Hidden():
            raise EncodingNotOfferedError("encoding Hidden is not made from logits: see encode_hidden")


def encode_hidden(hidden_rows: Tensor, encoding: Hidden) -> HiddenStates:
    """Return the payload of one sequence's final hidden states `[P, D]`, on the host; they are read, never changed.

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
    return HiddenStates(_cast(rows, "hidden", encoding.value_type).to("cpu", copy=True))


def _candidate_ids(token_ids: tuple[int, ...], sequence: Sequence, vocabulary_size: int) -> Tensor:
    """Return the ids that are named, `[K]` or `[P, K]` int32."""
    field, asked = ("candidates.token_ids", (token_ids,)) if token_ids else ("candidate_ids", sequence.candidate_ids)
    if not asked:
        raise InvalidRequestError("candidate_ids must name ids for each position, as candidates.token_ids names none")
    largest = max(ids[-1] for ids in asked)
    if largest >= vocabulary_size:
        raise InvalidRequestError(f"{field} must be below the vocabulary size {vocabulary_size}; got {largest}")
    return torch.tensor(token_ids or asked, dtype=torch.int32)


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
    chunks: Iterator[tuple[Tensor, slice]],
    columns: dict[str, _Column],
    reduce: Callable[[Tensor, slice], tuple[Tensor, ...]],
    num_positions: int,
) -> dict[str, Tensor]:
    """Reduce each chunk and lay the results end to end on the host, by the name of their column."""
    whole = {name: torch.empty(num_positions, *c.shape, dtype=c.dtype) for name, c in columns.items()}
    for chunk, rows in chunks:
        for column, part in zip(whole.values(), reduce(chunk, rows), strict=True):
            column[rows] = part
    return whole


def _numbered(chunks: Iterator[Tensor], num_positions: int) -> Iterator[tuple[Tensor, slice]]:
    """Say with each chunk which rows of the answer it holds, and see that they come to P."""
    end = 0
    for chunk in chunks:
        start, end = end, end + len(chunk)
        if end > num_positions:
            raise ValueError(f"row_chunks hold at least {end} rows, where {num_positions} positions are asked for")
        yield chunk, slice(start, end)
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
            bad = ~torch.isfinite(x_PN.amax(dim=1))
            if bad.any():
                row = int(bad.nonzero()[0])
                raise TeacherInternalError(
                    f"the teacher's logits at row {start + row} hold a NaN or +inf, or are all -inf: "
                    "its weights are damaged, or its compute dtype is too narrow for it (try float32)"
                )
        start += len(x_PN)
        yield x_PN


def _cast(values: Tensor, field: str, value_type: ValueType) -> Tensor:
    cast = values.to(DTYPES[value_type])
    if cast.numel() and not all(torch.isfinite(extreme) for extreme in cast.aminmax()):
        overflown = torch.isinf(cast) & torch.isfinite(values)
        if overflown.any():
            largest = float(values[overflown].abs().max())
            raise InvalidRequestError(
                f"{field}.value_type {value_type} cannot hold a logit of {largest:g}; ask for float32 instead"
            )
    return cast


def _top_k(x_PN: Tensor, k: int, value_type: ValueType, temperature: float) -> tuple[Tensor, ...]:
    ids_PK = top_k_ids(x_PN, k)
    return (ids_PK.int(), *_named(x_PN, ids_PK, "top_k", value_type, temperature))


def _named(x_PN: Tensor, ids_PK: Tensor, field: str, value_type: ValueType, temperature: float) -> tuple[Tensor, ...]:
    """Return the logits at named ids, and the four statistics of head and tail."""
    head_PK = x_PN.gather(1, ids_PK)
    tail_PN = x_PN.float().scatter(1, ids_PK, -math.inf)
    largest_P1 = x_PN.float().amax(dim=1, keepdim=True)
    statistics = _head_and_tail(head_PK.float(), tail_PN, largest_P1, 1.0)
    tempered = statistics if temperature == 1 else _head_and_tail(head_PK.float(), tail_PN, largest_P1, temperature)
    return (_cast(head_PK, field, value_type), *statistics, *tempered)


def top_k_ids(x_PN: Tensor, k: int) -> Tensor:
    """Return the ids `[P, K]` int64 of the k largest, by falling value; among equals the lower id comes first."""
    # One more than asked tells whether the last of the head has an equal in the tail: topk promises nothing of ties.
    values, ids = x_PN.topk(min(k + 1, x_PN.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = values[:, k] == values[:, k - 1]
        ids = ids[:, :k]
        if tied.any():
            ids[tied] = _lowest_ids_of_the_k_largest(x_PN[tied], values[tied, k - 1 : k], k)
    ids, _ = ids.sort(dim=1)
    order = x_PN.gather(1, ids).argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order)


def _lowest_ids_of_the_k_largest(x_PN: Tensor, last_P1: Tensor, k: int) -> Tensor:
    above, equal = x_PN > last_P1, x_PN == last_P1
    wanted = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)


def _head_and_tail(head_PK: Tensor, tail_PN: Tensor, largest_P1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-normaliser and log tail mass at a temperature, each `[P]`.

    All logits are taken relative to the largest, so that the mass of a tail keeps its digits beside logits of 1e4.
    """
    head = torch.logsumexp((head_PK - largest_P1) / temperature, dim=1)
    tail = torch.logsumexp((tail_PN - largest_P1) / temperature, dim=1)
    relative = torch.logaddexp(head, tail)
    return largest_P1[:, 0] / temperature + relative, tail - relative
