"""What all contestants of `serving` answer from, and what they are asked.

Hidden states and an output head of small whole numbers: their products are exact in float32 in whatever order they are
added, so that every process has the same table to the bit, and a client that rebuilds it can be held to that. Needs
numpy alone, for the environments of the peers. Shapes: R rows of the table, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

ROWS = 64
HIDDEN_SIZE = 896
VOCABULARY = 49_152
LARGEST = 4

FEW_VALUES = 16
"""The smallest answer: what is given of a row where one id alone is asked about."""

QUESTIONS = 4
"""So many different requests are asked in turn: one alone could be answered out of some memory."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is asked for at once, by how many clients."""

    name: str
    clients: int
    sequences: int


SETTINGS = {setting.name: setting for setting in (Setting("large", 8, 16), Setting("small", 32, 1))}


def hidden_states() -> Floats:
    """Return `[R, D]`; the first column is the row's number, by which it is known again."""
    values = _whole_numbers(0, (ROWS, HIDDEN_SIZE))
    values[:, 0] = np.arange(ROWS)
    return values


def output_head() -> Floats:
    """Return `[V, D]`; a division by a power of two makes logits of a common size, and loses nothing."""
    return _whole_numbers(1, (VOCABULARY, HIDDEN_SIZE)) / np.float32(64)


def table() -> Floats:
    """Return the logits `[R, V]`."""
    return hidden_states() @ output_head().T


def look_up(logits: Floats, ids: Ids) -> Floats:
    """Return what the ids are answered with."""
    return logits[ids] if len(ids) > 1 else logits[ids, :FEW_VALUES]


def question(setting: Setting, number: int) -> Ids:
    """Return the ids of one of the requests, one for each sequence."""
    first = number % QUESTIONS * setting.sequences
    return np.arange(first, first + setting.sequences, dtype=np.int32) * 5 % ROWS


def _whole_numbers(seed: int, shape: tuple[int, int]) -> Floats:
    return np.random.default_rng(seed).integers(-LARGEST, LARGEST + 1, shape, dtype=np.int8).astype(np.float32)
