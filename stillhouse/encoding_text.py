"""Encodings as people write them in a flag or a recipe: `top_k:64:f16`.

Knows nothing of who asks, nor of what a teacher offers.
"""

from __future__ import annotations

import re

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import ConfigurationError, InvalidRequestError

ENCODING_FORMS = (
    "write dense[:dtype], hidden[:dtype], top_k:K[:dtype], sampled[:draws[:seed]] or candidates[:ids[:dtype]], where a "
    "dtype is f32, f16 or bf16 and ids are such as 3,17,40"
)

_VALUE_TYPES: dict[str, ValueType] = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
_SHORT: dict[ValueType, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def parse_encoding(text: str) -> Encoding:
    """Read one encoding; what is left out has the encoding's own default.

    `candidates` without ids means that each position will name its own.

    Raises:
        ConfigurationError: none of the forms.
    """
    name, *arguments = text.strip().split(":")
    try:
        match name, len(arguments):
            case "dense", 0 | 1:
                return Dense(*map(_value_type, arguments))
            case "hidden", 0 | 1:
                return Hidden(*map(_value_type, arguments))
            case "top_k", 1 | 2:
                return TopK(int(arguments[0]), *map(_value_type, arguments[1:]))
            case "sampled", 0 | 1 | 2:
                return Sampled(*map(int, arguments))
            case "candidates", 0 | 1 | 2:
                ids = arguments[0].split(",") if arguments and arguments[0] else ()
                return Candidates(map(int, ids), *map(_value_type, arguments[1:]))
            case _:
                pass
    except (ValueError, InvalidRequestError) as error:
        raise ConfigurationError(f"encoding {text!r} cannot be read: {error}; {ENCODING_FORMS}") from error
    raise ConfigurationError(f"encoding {text!r} is not known; {ENCODING_FORMS}")


def parse_encodings(text: str) -> tuple[Encoding, ...]:
    """Read several, separated by commas: `top_k:64,candidates:3,17:f16,dense` are three.

    Raises:
        ConfigurationError: one that is none of the forms.
    """
    # A name starts with a letter, so that a comma before a digit stands between ids.
    return tuple(parse_encoding(part) for part in re.split(r",\s*(?=[^\d\s])", text))


def format_encoding(encoding: Encoding) -> str:
    """Return the text that `parse_encoding` reads as this encoding, every default written out."""
    match encoding:
        case Dense(value_type):
            return f"dense:{_SHORT[value_type]}"
        case Hidden(value_type):
            return f"hidden:{_SHORT[value_type]}"
        case TopK(k, value_type):
            return f"top_k:{k}:{_SHORT[value_type]}"
        case Sampled(draws, seed):
            return f"sampled:{draws}:{seed}"
        case Candidates(token_ids, value_type):
            return f"candidates:{','.join(map(str, token_ids))}:{_SHORT[value_type]}"


def _value_type(text: str) -> ValueType:
    if text not in _VALUE_TYPES:
        raise ConfigurationError(f"{text!r} is no dtype")
    return _VALUE_TYPES[text]
