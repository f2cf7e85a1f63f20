"""What a source hands on (a text, a conversation, a prompt with its completion, token ids), and what becomes of it.

Knows nothing of files or tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.uint32]
Mask = NDArray[np.bool_]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a corpus, as error messages name it: `corpus.jsonl, line 3`."""

    source: str
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}" if self.unit else self.source


@dataclass(frozen=True, slots=True)
class Text:
    """A document of plain text, or a piece of a long one; `first` and `last` say whether it begins or ends it."""

    place: Place
    text: str
    first: bool = True
    last: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """A document of messages; the assistant's from message `learn_from` on are what is to be learnt."""

    place: Place
    messages: tuple[Message, ...]
    learn_from: int = 0


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A document of a prompt and its completion, put end to end."""

    place: Place
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids as they were found, uint32 `[L]`: documents end after each boundary id, and where `last` is set."""

    place: Place
    token_ids: TokenIds
    offset: int
    last: bool


Item = Text | Conversation | PromptCompletion | Tokens


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a document or of a piece of one, uint32 `[L]`, which of them are learnt, bool `[L]`; `last` ends it."""

    place: Place
    token_ids: TokenIds
    learnt: Mask
    last: bool = True
