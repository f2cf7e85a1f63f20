"""What a run asks its teacher for, and what it evaluates with; refused at once where this teacher cannot give it.

Knows nothing of corpora or students.
"""

from __future__ import annotations

from typing import Literal

from stillhouse.encoding_choice import AUTO, FORMS, check_text, offered_encoding, warn_of_noise
from stillhouse.encoding_text import parse_encoding
from stillhouse.encodings import Dense, Encoding, Hidden, TopK
from stillhouse.errors import ConfigurationError
from stillhouse.request import TeacherDescription

__all__ = ["AUTO", "FORMS", "canonical", "check_text", "choose_encoding", "warn_of_noise"]


def canonical(text: str) -> str:
    """Return the same text for what asks the same."""
    return AUTO if text == AUTO else repr(parse_encoding(text))


def choose_encoding(
    key: Literal["encoding", "eval_encoding"], text: str, teacher: TeacherDescription, vocabulary_size: int
) -> Encoding:
    """Return what to ask for.

    Args:
        key: the recipe's key, for errors; what is evaluated with must tell the teacher's first choice.
        text: the recipe's value.
        teacher: whom to ask.
        vocabulary_size: N.

    Raises:
        EncodingNotOfferedError: this teacher does not answer with it.
        ConfigurationError: it is over the teacher's limits, or cannot be evaluated with.
    """
    encoding = offered_encoding(key, text, teacher, vocabulary_size)
    if key == "eval_encoding" and not isinstance(encoding, Dense | Hidden | TopK):
        raise ConfigurationError(
            f"eval_encoding {text!r} does not tell the teacher's first choice; evaluate with auto, hidden, dense or "
            "top_k"
        )
    return encoding
