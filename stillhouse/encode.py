"""Logits -> payload, by row chunks.

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

from stillhouse.codec import DTYPES
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import EncodingNotOfferedError, InvalidRequestError, TeacherInternalError
from stillhouse.payloads import CandidateLogits, DenseLogits, Payload, TopKLogits


def encode_logits(
    row_chunks: Iterable[Tensor],
    encoding: Encoding,
    *,
    temperature: float,
    vocabulary_size: int,
    num_positions: int | None = None,
) -> Payload:
    """Return the payload of one sequence, on the host.

    Args:
        row_chunks: `[p, V]` floating-point tensors on any device, the rows of all of them in order; V at least N.
            They are read, never changed.
        encoding: the form of the answer.
        temperature: T of the tempered statistics, above 0.
        vocabulary_size: N, at least 1: only the ids below it count.
        num_positions: P, where it is known: the payload is then filled in place. Otherwise its parts are joined in
            the end, which for that moment takes as much memory again.

    Raises:
        InvalidRequestError: a finite logit that float16 or bfloat16 would turn into an infinity.
        EncodingNotOfferedError: HIDDEN, which is not made from logits, and SAMPLED.
        TeacherInternalError: a NaN, +inf, or a row all -inf among the logits.
        ValueError: chunks that are not `[p, V >= N]`, or that do not add up to `num_positions`.
    """
    chunks = _checked(row_chunks, vocabulary_size)
    match encoding:
        case Dense(value_type):
            columns = {"logits": _Column((vocabulary_size,), DTYPES[value_type])}
            rows = _collect(chunks, columns, lambda x: (_cast(x, "dense", value_type),), num_positions)
            return DenseLogits(rows["logits"])
        case TopK(k, value_type):
            if k > vocabulary_size:
                raise InvalidRequestError(f"top_k.k must be at most the vocabulary size {vocabulary_size}; got {k}")
            columns = {
                "token_ids": _Column((k,), torch.int32),
                "logits": _Column((k,), DTYPES[value_type]),
                "log_normalizer": _Column(),
                "log_tail_mass": _Column(),
                "tempered_log_normalizer": _Column(),
                "tempered_log_tail_mass": _Column(),
            }
            rows = _collect(chunks, columns, lambda x: _top_k(x, k, value_type, temperature), num_positions)
            return TopKLogits(**rows, temperature=float(temperature), vocabulary_size=vocabulary_size)
        case Candidates(token_ids, value_type):
            if not token_ids:
                raise EncodingNotOfferedError("candidates that differ from position to position are not offered")
            if token_ids[-1] >= vocabulary_size:
                raise InvalidRequestError(
                    f"candidates.token_ids must be below the vocabulary size {vocabulary_size}; got {token_ids[-1]}"
                )
            ids = torch.tensor(token_ids, dtype=torch.int32)
            columns = {
                "logits": _Column((len(token_ids),), DTYPES[value_type]),
                "log_normalizer": _Column(),
                "log_tail_mass": _Column(),
                "tempered_log_normalizer": _Column(),
                "tempered_log_tail_mass": _Column(),
            }
            rows = _collect(chunks, columns, lambda x: _candidates(x, ids, value_type, temperature), num_positions)
            return CandidateLogits(ids, **rows, temperature=float(temperature), vocabulary_size=vocabulary_size)
        case Hidden() | Sampled():
            raise EncodingNotOfferedError(f"encoding {type(encoding).__name__} is not offered: use Dense or TopK")


@dataclass(frozen=True, slots=True)
class _Column:
    """What one tensor of a payload holds for each position."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


def _collect(
    chunks: Iterator[Tensor],
    columns: dict[str, _Column],
    reduce: Callable[[Tensor], tuple[Tensor, ...]],
    num_positions: int | None,
) -> dict[str, Tensor]:
    """Reduce each chunk and lay the results end to end on the host, by the name of their column."""
    if num_positions is None:
        # Copied, since a part may be a view of its chunk, which belongs to the caller.
        parts = [[part.to("cpu", copy=True) for part in reduce(chunk)] for chunk in chunks]
        empty = [torch.empty(0, *column.shape, dtype=column.dtype) for column in columns.values()]
        return {name: torch.cat(column) for name, column in zip(columns, zip(empty, *parts, strict=True), strict=True)}
    whole = {name: torch.empty(num_positions, *c.shape, dtype=c.dtype) for name, c in columns.items()}
    end = 0
    for chunk in chunks:
        start, end = end, end + len(chunk)
        if end > num_positions:
            raise ValueError(f"row_chunks hold at least {end} rows, where num_positions is {num_positions}")
        for column, part in zip(whole.values(), reduce(chunk), strict=True):
            column[start:end] = part
    if end != num_positions:
        raise ValueError(f"row_chunks hold {end} rows, where num_positions is {num_positions}")
    return whole


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


def _candidates(x_PN: Tensor, ids: Tensor, value_type: ValueType, temperature: float) -> tuple[Tensor, ...]:
    ids_PK = ids.to(x_PN.device, torch.int64).expand(len(x_PN), -1)
    return _named(x_PN, ids_PK, "candidates", value_type, temperature)
