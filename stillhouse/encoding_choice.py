"""Which encoding to ask a teacher for: the smallest exact one where none is chosen, and no other than it can give.

Knows nothing of who asks.
"""

from __future__ import annotations

from typing import cast

from stillhouse.encoding_text import ENCODING_FORMS, parse_encoding
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import ConfigurationError, EncodingNotOfferedError
from stillhouse.request import TeacherDescription

AUTO = "auto"
FORMS = f"auto (the smallest exact one: hidden where offered, else dense), or {ENCODING_FORMS}"

# At T = 2 fifty draws from a real teacher hit 46 different ids of a distribution over thousands.
_HIGHEST_SAMPLED_TEMPERATURE = 1.25


def check_text(text: str) -> str:
    """Return the text of an encoding, or of `auto`.

    Raises:
        ConfigurationError: neither; or candidates that name no ids, since a corpus names none for them.
    """
    if text != AUTO and parse_encoding(text) in (Candidates(), Candidates((), "float16")):
        raise ConfigurationError(f"encoding {text!r} names no ids: write them, as in candidates:3,17,40")
    return text


def auto_encoding(teacher: TeacherDescription, vocabulary_size: int) -> Encoding:
    """Return HIDDEN where it is offered and narrower than the vocabulary, else DENSE; either loses nothing.

    A teacher that computes in float16 sends its hidden states as float32, since bfloat16 would round them. Both forms
    are exact at every temperature.

    Args:
        teacher: what is served.
        vocabulary_size: N, how many logits of a row are learnt from.
    """
    if Hidden in teacher.encodings and teacher.hidden_size < vocabulary_size:
        return Hidden("bfloat16" if teacher.compute_dtype == "bfloat16" else "float32")
    known = teacher.compute_dtype in ("float32", "float16", "bfloat16")
    return Dense(cast("ValueType", teacher.compute_dtype) if known else "float32")


def offered_encoding(key: str, text: str, teacher: TeacherDescription, vocabulary_size: int) -> Encoding:
    """Return what to ask for.

    Args:
        key: the name of the setting, for errors.
        text: its value: an encoding, or `auto`.
        teacher: whom to ask.
        vocabulary_size: N.

    Raises:
        EncodingNotOfferedError: this teacher does not answer with it.
        ConfigurationError: it is over the teacher's limits.
    """
    encoding = auto_encoding(teacher, vocabulary_size) if text == AUTO else parse_encoding(text)
    if not isinstance(encoding, teacher.encodings):
        offered = ", ".join(offer.__name__ for offer in teacher.encodings)
        raise EncodingNotOfferedError(f"{key} {text!r}: this teacher offers {offered}")
    _check_limits(key, text, encoding, teacher, vocabulary_size)
    return encoding


def warn_of_noise(encoding: Encoding, temperature: float) -> None:
    """Say when draws at such a temperature would be mostly noise."""
    if isinstance(encoding, Sampled) and temperature > _HIGHEST_SAMPLED_TEMPERATURE:
        # Here and not above: flags are made of this module, and their help would wait for it.
        import structlog

        structlog.get_logger(__name__).warning(
            "draws_are_mostly_noise",
            temperature=temperature,
            draws=encoding.draws,
            reason="at T above 1 a teacher's mass lies on thousands of ids, and few draws hit any of them twice",
            remedy="temperature 1, or --encoding hidden or dense, which are exact at any temperature",
        )


def _check_limits(key: str, text: str, encoding: Encoding, teacher: TeacherDescription, vocabulary_size: int) -> None:
    limits = teacher.limits
    match encoding:
        case TopK(k=k):
            asked, limit, what = k, min(limits.max_top_k, vocabulary_size), "ids"
        case Sampled(draws=draws):
            asked, limit, what = draws, limits.max_draws, "draws"
        case Candidates(token_ids=ids):
            if ids[-1] >= vocabulary_size:
                raise ConfigurationError(f"{key} {text!r}: ids must be below the shared vocabulary {vocabulary_size}")
            asked, limit, what = len(ids), limits.max_candidates, "ids"
        case _:
            return
    if asked > limit:
        raise ConfigurationError(f"{key} {text!r}: this teacher's limit is {limit} {what}")
