"""Token ids -> what people can read: the tokenizer's own token, and the text that it stands for.

Works from the list of tokens alone, which is all that a description holds: byte-level vocabularies write each byte as
a letter (a space as `Ġ`), SentencePiece ones a space as `▁` and lone bytes as `<0x0A>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from stillhouse.vocabulary import HOLE

_LONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The tokens of one teacher."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._bytes: Callable[[str], bytes] = str.encode
        if any(token.startswith("Ġ") for token in tokens):
            self._bytes = _from_letters
        elif any(token.startswith("▁") for token in tokens):
            self._bytes = _from_pieces

    def own(self, ids: Iterable[int]) -> list[str | None]:
        """Return the tokenizer's own tokens; None for an id that has none, as in a head wider than the tokenizer."""
        return [self._token(one) for one in ids]

    def texts(self, ids: Iterable[int]) -> list[str | None]:
        """Return what the tokens read as; U+FFFD stands for bytes that are but a part of a character."""
        tokens = map(self._token, ids)
        return [None if token is None else self._bytes(token).decode(errors="replace") for token in tokens]

    def text(self, ids: Iterable[int]) -> str:
        """Return what tokens read as one after the other, characters that several make up whole."""
        tokens = (self._token(one) for one in ids)
        return b"".join(b"" if token is None else self._bytes(token) for token in tokens).decode(errors="replace")

    def _token(self, index: int) -> str | None:
        token = self._tokens[index] if index < len(self._tokens) else HOLE.format(index)
        return None if token == HOLE.format(index) else token


def _byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter stands for, as GPT-2 chose: printable ones themselves, others from U+0100 up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_of_letter()


def _from_letters(token: str) -> bytes:
    try:
        return bytes(_BYTES[letter] for letter in token)
    except KeyError:
        return token.encode()  # an added token, written as it reads


def _from_pieces(token: str) -> bytes:
    if match := _LONE_BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()
