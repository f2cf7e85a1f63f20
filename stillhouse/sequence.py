"""A sequence of token ids, and which of its positions are asked about.

Checks itself when it is made. Knows nothing of encodings, teachers or transports.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from numbers import Integral

from stillhouse.encodings import first_fall, is_rising, shown
from stillhouse.errors import InvalidRequestError

MAX_TOKEN_ID = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Last:
    """The last position only."""


@dataclass(frozen=True, slots=True)
class All:
    """Every position."""


@dataclass(frozen=True, slots=True)
class From:
    """The position `start` and every one after it."""

    start: int


@dataclass(frozen=True, slots=True)
class Explicit:
    """Exactly these positions, strictly increasing."""

    indices: tuple[int, ...]


Positions = Last | All | From | Explicit


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence of token ids and what is asked about it.

    `segment_lengths` are the lengths of the documents packed into it; empty means one document. Attention never
    crosses from one to another and positions count from 0 in each. `positions` count over the whole sequence.
    `candidate_ids` go with `Candidates()`: for each position asked for, as many strictly increasing ids as for every
    other. `sample_index` says where a store may hold the answer: the part and the sample's index in it. It is a hint
    and no part of what is asked: it counts in no comparison, key or fingerprint, and never travels.
    """

    token_ids: tuple[int, ...]
    segment_lengths: tuple[int, ...] = ()
    positions: Positions = field(default_factory=Last)
    candidate_ids: tuple[tuple[int, ...], ...] = ()
    sample_index: tuple[str, int] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_integers("token_ids", self.token_ids)
        if not self.token_ids:
            raise InvalidRequestError("token_ids must hold at least one id; got none")
        least, largest = min(self.token_ids), max(self.token_ids)
        if least < 0 or largest > MAX_TOKEN_ID:
            raise InvalidRequestError(
                f"token_ids must be from 0 to {MAX_TOKEN_ID}; got {shown(least if least < 0 else largest)}"
            )
        _check_integers("segment_lengths", self.segment_lengths)
        if self.segment_lengths:
            if min(self.segment_lengths) < 1:
                raise InvalidRequestError(
                    f"segment_lengths must each be at least 1; got {shown(min(self.segment_lengths))}"
                )
            if sum(self.segment_lengths) != len(self.token_ids):
                raise InvalidRequestError(
                    f"segment_lengths must add up to the number of token_ids, {len(self.token_ids)}; "
                    f"got {shown(sum(self.segment_lengths))}"
                )
        self._check_positions()
        if self.candidate_ids:
            self._check_candidates()

    def _check_positions(self) -> None:
        length = len(self.token_ids)
        match self.positions:
            case From(start):
                _check_integers("positions.from", (start,))
                if not 0 <= start < length:
                    raise InvalidRequestError(
                        f"positions.from must be from 0 to below the sequence's length {length}; got {shown(start)}"
                    )
            case Explicit(indices):
                _check_integers("positions.explicit", indices)
                if not indices:
                    raise InvalidRequestError("positions.explicit must name at least one position; got none")
                if not is_rising(indices):
                    raise InvalidRequestError(
                        f"positions.explicit must be strictly increasing from 0 upwards; got {first_fall(indices)}"
                    )
                if indices[-1] >= length:
                    raise InvalidRequestError(
                        f"positions.explicit must be below the sequence's length {length}; got {shown(indices[-1])}"
                    )
            case Last() | All():
                pass
            case other:  # what no annotation keeps a caller from
                raise InvalidRequestError(
                    f"positions must be Last(), All(), From(start) or Explicit(indices); got {other!r}"
                )

    def _check_candidates(self) -> None:
        if len(self.candidate_ids) != self.num_positions:
            raise InvalidRequestError(
                f"candidate_ids must name the ids of each of the {self.num_positions} positions asked for; "
                f"got {len(self.candidate_ids)} lists"
            )
        if len(set(map(len, self.candidate_ids))) > 1 or not self.candidate_ids[0]:
            numbers = sorted(set(map(len, self.candidate_ids)))
            raise InvalidRequestError(
                f"candidate_ids must name as many ids for each position, at least one; got {numbers} of them"
            )
        for index, ids in enumerate(self.candidate_ids):
            _check_integers(f"candidate_ids[{index}]", ids)
            if not is_rising(ids):
                raise InvalidRequestError(
                    f"candidate_ids[{index}] must be strictly increasing from 0 upwards; got {first_fall(ids)}"
                )

    @property
    def num_candidates(self) -> int:
        """The number of ids that it names for each position; 0 where it names none."""
        return len(self.candidate_ids[0]) if self.candidate_ids else 0

    def position_indices(self) -> SequenceOf[int]:
        """Return the positions asked for, as increasing indices into the sequence."""
        length = len(self.token_ids)
        match self.positions:
            case Last():
                return range(length - 1, length)
            case All():
                return range(length)
            case From(start):
                return range(start, length)
            case Explicit(indices):
                return indices

    @property
    def num_positions(self) -> int:
        """The number of positions asked for."""
        return len(self.position_indices())


def _check_integers(name: str, values: object) -> None:
    """Refuse what is no sequence of integers; their sum tells, without a loop of Python's over each."""
    try:
        # The common classes first: to look the abstract ones up takes longer than all the rest.
        fits = isinstance(values, (tuple, SequenceOf)) and isinstance(sum(values), (int, Integral))
    except TypeError:
        fits = False
    if not fits:
        raise InvalidRequestError(f"{name} must hold integers; got {values!r:.100}")
