"""Requests of every kind, the same for the same seed. Knows nothing of who answers them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import product

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.request import All, CacheMode, Explicit, From, Last, LogitsRequest, Positions, Sequence
from tests.torture.reference import VOCABULARY_SIZE

SMALLER_VOCABULARY = 300
TEMPERATURES = (1.0, 0.5, 2.0, 4.0)
COUNT = float(os.environ.get("STILLHOUSE_TEST_COUNT", "1"))


def scaled(count: float, least: float = 1) -> int:
    """Return a count of the full tests at the scale that is asked for, and never less than what still tests."""
    return round(max(count * COUNT, least))


def encodings(draw: random.Random, n: int) -> list[Encoding]:
    """Return one of every kind and value type; `Candidates()` asks about other ids at each position."""
    ids = sorted(draw.sample(range(n), 9))
    floats: tuple[ValueType, ...] = ("float32", "float16", "bfloat16")
    return [
        *(Dense(value_type) for value_type in floats),
        *(TopK(k, value_type) for k in (draw.choice((1, 17, 64)), n) for value_type in floats[:2]),
        *(Candidates(ids, value_type) for value_type in floats[:2]),
        *(Candidates((), value_type) for value_type in floats[:2]),
        *(Hidden(value_type) for value_type in ("float32", "bfloat16")),
        Sampled(1, draw.getrandbits(64)),
        Sampled(50, draw.getrandbits(64)),
    ]


def positions(draw: random.Random, length: int) -> list[Positions]:
    """Return one choice of each kind."""
    some = sorted(draw.sample(range(length), draw.randint(1, length)))
    return [Last(), All(), From(draw.randrange(length)), Explicit(tuple(some))]


def sequence_of(
    draw: random.Random, length: int, where: Positions, encoding: Encoding, n: int, *, packed: bool
) -> Sequence:
    """Return a sequence of random ids, as one document or as several packed into it."""
    token_ids = tuple(draw.randrange(VOCABULARY_SIZE) for _ in range(length))
    segments: tuple[int, ...] = ()
    if packed and length > 1:
        cuts = sorted(draw.sample(range(1, length), draw.randint(1, min(4, length - 1))))
        segments = tuple(b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True))
    sequence = Sequence(token_ids, segments, where)
    if not isinstance(encoding, Candidates) or encoding.token_ids:
        return sequence
    rows = (tuple(sorted(draw.sample(range(n), 5))) for _ in range(sequence.num_positions))
    return Sequence(token_ids, segments, where, tuple(rows))


def every_combination(seed: int) -> list[LogitsRequest]:
    """Return one request for each of encoding, value type, kind of positions, packed or not, T and N."""
    draw, requests = random.Random(seed), []
    for kind, where, packed in product(range(len(encodings(draw, 100))), range(4), (False, True)):
        for temperature, n in product(TEMPERATURES[:3], (0, SMALLER_VOCABULARY)):
            size = n or VOCABULARY_SIZE
            encoding = encodings(draw, size)[kind]
            length = draw.randint(2, 48)
            sequence = sequence_of(draw, length, positions(draw, length)[where], encoding, size, packed=packed)
            requests.append(LogitsRequest((sequence,), encoding, temperature, n))
    return requests


def mixed(seed: int, *, longest: int = 96) -> Iterator[LogitsRequest]:
    """Yield requests without end: one to four sequences each, of all encodings, lengths, positions and segments.

    Half of them use the cache, and half of those ask what an earlier one has asked.
    """
    draw = random.Random(seed)
    asked: list[LogitsRequest] = []
    while True:
        if asked and draw.random() < 0.25:
            yield draw.choice(asked)
            continue
        n = draw.choice((0, SMALLER_VOCABULARY))
        size = n or VOCABULARY_SIZE
        encoding = draw.choice(encodings(draw, size))
        parts = []
        for _ in range(draw.randint(1, 4)):
            length = max(1, int(longest ** draw.random()))
            where = draw.choice(positions(draw, length))
            parts.append(sequence_of(draw, length, where, encoding, size, packed=draw.random() < 0.3))
        modes: tuple[CacheMode, ...] = ("use", "refresh", "bypass")
        mode = draw.choices(modes, (3, 1, 2))[0]
        request = LogitsRequest(tuple(parts), encoding, draw.choice(TEMPERATURES), n, mode)
        if mode == "use":
            asked = [*asked[-63:], request]
        yield request
