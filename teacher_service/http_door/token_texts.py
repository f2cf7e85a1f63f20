"""Token ids -> what people can read: the tokenizer's own token, and the text that it stands for.

Works from the list of tokens alone, which is all that a description holds: byte-level vocabularies write each byte as
a letter (a space as `Ġ`), SentencePiece ones a space as `▁` and lone bytes as `<0x0A>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from stillhouse.errors import InvalidRequestError
from stillhouse.vocabulary import HOLE

_LONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The tokens of one teacher."""

    def __init__(self, tokens: Sequence[str]) -> None:
        if not tokens:
            raise InvalidRequestError("include_tokens must be false: this teacher has no tokenizer")
        self._tokens = tokens
        self._read: Callable[[str], str] = str
        if any(token.startswith("Ġ") for token in tokens):
            self._read = _from_letters
        elif any(token.startswith("▁") for token in tokens):
            self._read = _from_pieces

    def own(self, ids: Iterable[int]) -> list[str | None]:
        """Return the tokenizer's own tokens; None for an id that has none, as in a head wider than the tokenizer."""
        return [self._token(one) for one in ids]

    def texts(self, ids: Iterable[int]) -> list[str | None]:
        """Return what the tokens read as; U+FFFD stands for bytes that are but a part of a character."""
        return [None if (token := self._token(one)) is None else self._read(token) for one in ids]

    def _token(self, index: int) -> str | None:
        token = self._tokens[index] if index < len(self._tokens) else HOLE.format(index)
        return None if token == HOLE.format(index) else token


def _byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter stands for, as GPT-2 chose: printable ones themselves, others from U+0100 up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_of_letter()


def _from_letters(token: str) -> str:
    try:
        return bytes(_BYTES[letter] for letter in token).decode(errors="replace")
    except KeyError:
        return token  # an added token, written as it reads


def _from_pieces(token: str) -> str:
    if match := _LONE_BYTE.fullmatch(token):
        return bytes([int(match[1], 16)]).decode(errors="replace")
    return token.replace("▁", " ")
