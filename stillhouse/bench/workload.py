"""What a load asks: requests of mixed lengths and encodings, some of them asked before. Knows nothing of calls.

The requests follow from the seed alone, one after the other, whoever takes them and when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stillhouse.encoding_text import format_encoding, parse_encodings
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError
from stillhouse.request import All, CacheMode, Explicit, Last, LogitsRequest, Positions, Sequence, TeacherDescription

# How many requests are remembered, of which one may be asked again; a token takes up to 36 bytes each.
_MOST_REMEMBERED = 1024

Lengths = Callable[[np.random.Generator], int]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a load, and under what name it is counted; `number` is that of the content, which may recur."""

    number: int
    label: str
    request: LogitsRequest
    is_repeat: bool


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """What is asked, as a person writes it; `Workload` checks it against a teacher."""

    lengths: str = "16..512"
    encodings: str = "all"
    positions: str = "all"
    repeat: float = 0.0
    batch: int = 1
    candidates: int = 16
    temperature: float = 1.0
    vocabulary_size: int = 0
    cache_mode: CacheMode = "use"


class Workload:
    """Makes the requests of a load, without end."""

    def __init__(self, settings: WorkloadSettings, teacher: TeacherDescription, seed: int) -> None:
        """Prepare a load for a teacher.

        Raises:
            ConfigurationError: settings that cannot be read or that no load has.
            TeacherError: requests that this teacher would refuse.
        """
        if not 0 <= settings.repeat <= 1:
            raise ConfigurationError(f"repeat must be a share from 0 to 1; got {settings.repeat}")
        for name, value in (("batch", settings.batch), ("candidates", settings.candidates)):
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1; got {value}")
        self._settings = settings
        self._teacher = teacher
        self._vocabulary_size = settings.vocabulary_size or teacher.vocabulary_size
        self._candidates = min(settings.candidates, self._vocabulary_size, teacher.limits.max_candidates)
        self._lengths = parse_lengths(settings.lengths, teacher.limits.max_sequence_tokens)
        self._positions = _parse_positions(settings.positions)
        self.encodings = _encodings(settings.encodings, teacher, self._vocabulary_size)
        self._generator = np.random.default_rng(seed)
        self._remembered: deque[Asked] = deque(maxlen=_MOST_REMEMBERED)
        self._made = 0
        for encoding in self.encodings:
            # A larger batch is cut by the client; all else that can be refused should be before the load begins.
            self._request(np.random.default_rng(0), encoding, batch=1).check(teacher)

    def next(self) -> Asked:
        """Return the next request."""
        generator = self._generator
        # Both are drawn for every request, so that the share of repeats does not change what else is asked.
        repeats, encoding = generator.random() < self._settings.repeat, int(generator.integers(len(self.encodings)))
        if repeats and self._remembered:
            earlier = self._remembered[int(generator.integers(len(self._remembered)))]
            return Asked(earlier.number, earlier.label, earlier.request, is_repeat=True)
        chosen = self.encodings[encoding]
        asked = Asked(
            self._made, format_encoding(chosen), self._request(generator, chosen, self._settings.batch), is_repeat=False
        )
        self._made += 1
        if self._settings.repeat:
            self._remembered.append(asked)
        return asked

    def _request(self, generator: np.random.Generator, encoding: Encoding, batch: int) -> LogitsRequest:
        return LogitsRequest(
            tuple(self._sequence(generator, encoding) for _ in range(batch)),
            encoding,
            temperature=self._settings.temperature,
            vocabulary_size=self._settings.vocabulary_size,
            cache_mode=self._settings.cache_mode,
        )

    def _sequence(self, generator: np.random.Generator, encoding: Encoding) -> Sequence:
        length = self._lengths(generator)
        ids = tuple(generator.integers(self._teacher.vocabulary_size, size=length).tolist())
        positions = self._positions(generator, length)
        sequence = Sequence(ids, positions=positions)
        if encoding not in (Candidates(), Candidates((), "float16")):
            return sequence
        # One id from each of K equal stretches of the vocabulary: rising, and none twice.
        stretch = self._vocabulary_size // self._candidates
        offsets = generator.integers(stretch, size=(sequence.num_positions, self._candidates))
        named = offsets + stretch * np.arange(self._candidates)
        return Sequence(ids, positions=positions, candidate_ids=tuple(map(tuple, named.tolist())))


def parse_lengths(text: str, most: int) -> Lengths:
    """Read `64`, `16,64,512` (each as often), `16..512` (each length as often) or `lognormal:128:0.8` (median, sigma).

    None is below 1 or above `most`.

    Raises:
        ConfigurationError: none of the forms, or a length that the teacher does not take.
    """
    try:
        if text.startswith("lognormal:"):
            _, median, sigma = text.split(":")
            return _lognormal(float(median), float(sigma), most)
        each = [int(part) for part in text.split(".." if ".." in text else ",")]
        if ".." in text and (len(each) != 2 or each[0] > each[1]):
            raise ValueError("a range has a shortest and a longest, in this order")
    except ValueError as error:
        raise ConfigurationError(
            f"lengths {text!r} cannot be read: {error}; write 64, 16,64,512, 16..512 or lognormal:128:0.8"
        ) from error
    if min(each) < 1 or max(each) > most:
        raise ConfigurationError(f"lengths {text!r} must be from 1 to {most}, the teacher's max_sequence_tokens")
    if ".." in text:
        return lambda generator: int(generator.integers(each[0], each[1] + 1))
    return lambda generator: int(generator.choice(each))


def _lognormal(median: float, sigma: float, most: int) -> Lengths:
    if not (0 < median < np.inf and 0 <= sigma < np.inf):
        raise ValueError("the median is above 0, and sigma 0 or above")
    return lambda generator: int(np.clip(generator.lognormal(np.log(median), sigma), 1, most))


def _parse_positions(text: str) -> Callable[[np.random.Generator, int], Positions]:
    name, colon, count = text.partition(":")
    if text in ("all", "last"):
        return lambda _, __: All() if text == "all" else Last()
    if name == "sample" and colon and count.isdecimal() and int(count) > 0:

        def sample(generator: np.random.Generator, length: int) -> Positions:
            chosen = generator.choice(length, size=min(int(count), length), replace=False)
            return Explicit(tuple(sorted(chosen.tolist())))

        return sample
    raise ConfigurationError(f"positions {text!r} cannot be read; write all, last or sample:16")


def _encodings(text: str, teacher: TeacherDescription, vocabulary_size: int) -> tuple[Encoding, ...]:
    if text != "all":
        return parse_encodings(text)
    usual: tuple[Encoding, ...] = (
        Dense("float16"),
        Hidden(),
        TopK(min(64, vocabulary_size)),
        Sampled(),
        Candidates(),
    )
    return tuple(encoding for encoding in usual if isinstance(encoding, teacher.encodings))
