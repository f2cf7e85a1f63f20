"""What a teacher thinks of the tokens that somebody else chose: log-probabilities in the caller's own order.

A teacher is asked about candidates that rise and are as many at each position of a sequence; a caller has what its
student drew, in any order, some of it twice. Knows nothing of who is asked. Shapes: P positions, K ids of a position.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.encodings import Candidates
from stillhouse.errors import InvalidRequestError, TeacherInternalError
from stillhouse.payloads import CandidateLogits, Payload
from stillhouse.plain_requests import (
    CandidateRows,
    Ids,
    PositionChoice,
    TokenRows,
    as_rows,
    candidates_of_each,
    plain_ids,
    positions_of_each,
)
from stillhouse.request import Explicit, LogitsRequest, Positions, Sequence


@dataclass(frozen=True, slots=True)
class Scoring:
    """A request for candidates, and where in its answer each of the caller's ids stands.

    `columns` has one `[P, K]` int64 for each sequence; `is_flat` says that the caller named one id a position, `[P]`.
    """

    request: LogitsRequest
    columns: tuple[Tensor, ...]
    is_flat: tuple[bool, ...]

    def read(self, payloads: SequenceOf[Payload]) -> list[Tensor]:
        """Return log softmax(logits / T) at the caller's ids, float32, one tensor for each sequence."""
        scores = []
        for payload, columns_PK, is_flat in zip(payloads, self.columns, self.is_flat, strict=True):
            if not isinstance(payload, CandidateLogits):
                raise TeacherInternalError(f"candidates were asked for; a {type(payload).__name__} came")
            tempered_PC = payload.logits.float() / payload.temperature
            log_probs_PK = (tempered_PC - payload.tempered_log_normalizer[:, None]).gather(1, columns_PK)
            scores.append(log_probs_PK[:, 0] if is_flat else log_probs_PK)
        return scores


def plan_scoring(
    input_ids: TokenRows,
    candidate_ids: CandidateRows | None,
    *,
    positions: PositionChoice | None = None,
    temperature: float = 1.0,
    vocabulary_size: int = 0,
) -> Scoring:
    """Return what to ask, and how to read the answer; what the arguments mean stands at `log_probs` of a provider.

    Raises:
        InvalidRequestError: an argument that no teacher could serve.
    """
    rows = [plain_ids(ids) for ids in input_ids]
    if candidate_ids is None:
        chosen, named = _what_follows(rows, positions)
        is_flat = [True] * len(rows)
    else:
        chosen = positions_of_each(positions, len(rows))
        named = candidates_of_each(candidate_ids, len(rows))
        is_flat = [np.ndim(ids[0]) == 0 for ids in candidate_ids]
    distinct = [_distinct(ids_PK) for ids_PK in named]
    request = LogitsRequest(
        sequences=tuple(
            Sequence(ids, positions=these, candidate_ids=as_rows(asked_PC))
            for ids, these, asked_PC in zip(rows, chosen, distinct, strict=True)
        ),
        encoding=Candidates(),
        temperature=temperature,
        vocabulary_size=vocabulary_size,
    )
    columns = tuple(_columns(asked, ids) for asked, ids in zip(distinct, named, strict=True))
    return Scoring(request, columns, tuple(is_flat))


def _what_follows(
    rows: SequenceOf[tuple[int, ...]], positions: PositionChoice | None
) -> tuple[list[Positions], list[Ids]]:
    """Return the positions that have a next id, and these ids."""
    chosen: list[Positions] = []
    named = []
    for index, ids in enumerate(rows):
        if positions is None:
            if len(ids) < 2:
                raise InvalidRequestError(f"input_ids[{index}] must hold two ids or more; got {len(ids)}: none follows")
            chosen.append(Explicit(tuple(range(len(ids) - 1))))
        else:
            chosen.append(positions_of_each(positions, len(rows))[index])
        indices = Sequence(ids, positions=chosen[-1]).position_indices()
        if indices[-1] == len(ids) - 1:
            raise InvalidRequestError(
                f"positions of input_ids[{index}] hold its last, {indices[-1]}, which no id follows; leave it out, or "
                "name candidate_ids"
            )
        named.append(np.asarray(ids, dtype=np.int64)[[position + 1 for position in indices], None])
    return chosen, named


def _distinct(ids_PK: Ids) -> Ids:
    """Return each row's ids rising and once, `[P, C]`; a row with fewer than another is filled up with ids it lacks."""
    rising_PK = np.sort(ids_PK, axis=1)
    if not (rising_PK[:, 1:] == rising_PK[:, :-1]).any():
        return rising_PK
    rows = [np.unique(ids) for ids in rising_PK]
    width = max(map(len, rows))
    # Of the ids below `width` a shorter row lacks enough, and N is not below `width`.
    filled = [np.union1d(ids, np.setdiff1d(np.arange(width), ids)[: width - len(ids)]) for ids in rows]
    return np.stack(filled).astype(np.int64)


def _columns(asked_PC: Ids, ids_PK: Ids) -> Tensor:
    """Return in which column of what was asked each id stands, `[P, K]`."""
    # All rows are searched at once: each is lifted above the one before it.
    lift_P1 = np.arange(len(ids_PK), dtype=np.int64)[:, None] << 32
    places_PK = np.searchsorted((asked_PC + lift_P1).ravel(), ids_PK + lift_P1)
    return torch.from_numpy(places_PK - np.arange(len(ids_PK))[:, None] * asked_PC.shape[1])
