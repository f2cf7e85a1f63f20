"""What a person has at hand (lists, arrays, tensors of ids) as the request that a teacher is asked.

Knows nothing of who answers. Shapes: P positions, K ids of a position.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stillhouse.encodings import Candidates, Dense, Encoding
from stillhouse.errors import InvalidRequestError
from stillhouse.request import MAX_TOKEN_ID, All, Explicit, From, Last, LogitsRequest, Positions, Sequence

TokenBatch = SequenceOf[SequenceOf[int]]
"""A batch of token id sequences, of any lengths."""

TokenRows = TokenBatch | SequenceOf[npt.NDArray[np.integer]] | SequenceOf[Tensor] | npt.NDArray[np.integer] | Tensor
"""What a person may have at hand instead: arrays, or a tensor whose rows are the sequences."""

CandidateRows = TokenRows | SequenceOf[SequenceOf[SequenceOf[int]]]
"""Ids for each position of each sequence, `[P, K]`, or `[P]` where it is one for each."""

PositionChoice = Positions | SequenceOf[Positions]
"""The same positions of every sequence, or those of each."""

Ids = npt.NDArray[np.int64]


def plain_request(
    input_ids: TokenRows,
    *,
    encoding: Encoding | None = None,
    positions: PositionChoice | None = None,
    temperature: float = 1.0,
    vocabulary_size: int = 0,
    candidate_ids: CandidateRows | None = None,
) -> LogitsRequest:
    """Return the request about plain sequences of ids: lists, arrays, or the rows of a tensor.

    `candidate_ids` names the ids asked about at each position, none of them twice, in any order: they are asked, and
    stand in the answer, rising. The encoding is then `Candidates()`, which may choose the value type.

    Raises:
        InvalidRequestError: an argument that no teacher could serve.
    """
    rows = [plain_ids(ids) for ids in input_ids]
    chosen = positions_of_each(positions, len(rows))
    named: list[tuple[tuple[int, ...], ...]] = [()] * len(rows)
    if candidate_ids is not None:
        encoding = encoding or Candidates()
        named = [_rising(index, ids) for index, ids in enumerate(candidates_of_each(candidate_ids, len(rows)))]
    return LogitsRequest(
        sequences=tuple(
            Sequence(ids, positions=these, candidate_ids=names)
            for ids, these, names in zip(rows, chosen, named, strict=True)
        ),
        encoding=encoding or Dense(),
        temperature=temperature,
        vocabulary_size=vocabulary_size,
    )


def plain_ids(ids: SequenceOf[int] | Tensor | npt.NDArray[np.integer]) -> tuple[int, ...]:
    """Return one sequence's ids.

    Raises:
        InvalidRequestError: no single row of integers.
    """
    if isinstance(ids, Tensor | np.ndarray):
        if ids.ndim != 1 or np.dtype(str(ids.dtype).removeprefix("torch.")).kind not in "iu":
            raise InvalidRequestError(f"token_ids must be one row of integers; got {ids.dtype} {list(ids.shape)}")
        return tuple(ids.tolist())
    return tuple(map(operator.index, ids))


def positions_of_each(positions: PositionChoice | None, count: int) -> list[Positions]:
    """Return the positions asked for of each of `count` sequences, by default all.

    Raises:
        InvalidRequestError: another number of them.
    """
    if positions is None:
        return [All()] * count
    if isinstance(positions, Last | All | From | Explicit):
        return [positions] * count
    if len(positions) != count:
        raise InvalidRequestError(f"positions must be one choice, or one for each of {count}; got {len(positions)}")
    return list(positions)


def candidates_of_each(candidate_ids: CandidateRows, count: int) -> list[Ids]:
    """Return the ids asked about, `[P, K]` for each of `count` sequences, in the order given.

    Raises:
        InvalidRequestError: another number of them, or none that are ids.
    """
    if len(candidate_ids) != count:
        raise InvalidRequestError(
            f"candidate_ids must hold the ids of each of the {count} sequences; got {len(candidate_ids)}"
        )
    return [_matrix(index, ids) for index, ids in enumerate(candidate_ids)]


def as_rows(ids_PK: Ids) -> tuple[tuple[int, ...], ...]:
    """Return ids as a `Sequence` holds them."""
    return tuple(map(tuple, ids_PK.tolist()))


def _matrix(index: int, ids: Iterable[object]) -> Ids:
    what = f"candidate_ids[{index}]"
    try:
        array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"{what} must name as many ids for each position: {error}") from error
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "iu":
        raise InvalidRequestError(
            f"{what} must be integers [positions, ids], or [positions] for one id each; got {array.dtype} "
            f"{list(array.shape)}"
        )
    matrix = array.astype(np.int64).reshape(len(array), -1)
    if matrix.min() < 0 or matrix.max() > MAX_TOKEN_ID:
        raise InvalidRequestError(f"{what} must be ids from 0 to {MAX_TOKEN_ID}")
    return matrix


def _rising(index: int, ids_PK: Ids) -> tuple[tuple[int, ...], ...]:
    rising_PK = np.sort(ids_PK, axis=1)
    twice = np.argwhere(rising_PK[:, 1:] == rising_PK[:, :-1])
    if len(twice):
        row, column = twice[0]
        raise InvalidRequestError(
            f"candidate_ids[{index}][{row}] names id {rising_PK[row, column]} twice; name it once, or ask log_probs"
        )
    return as_rows(rising_PK)
