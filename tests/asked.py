"""Sequences for tests that have logits at hand and need somebody to have asked for them."""

from __future__ import annotations

from stillhouse.request import All, Sequence


def every_position(rows: int, first_token: int = 0) -> Sequence:
    """A sequence of `rows` tokens, asked about at each of them."""
    return Sequence(tuple(range(first_token, first_token + rows)), positions=All())
