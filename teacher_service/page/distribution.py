"""What the teacher expects after each token of a text that a person types.

One top-k request for the likeliest tokens at every position, one for what was really written. Both go the way of any
other request: bounds, cache, batch. Knows nothing of HTML.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from stillhouse.codec import decode_payload
from stillhouse.encodings import Candidates, TopK
from stillhouse.errors import InvalidRequestError, RequestTooLongError
from stillhouse.payloads import CandidateLogits, Payload, TopKLogits
from stillhouse.request import All, Explicit, LogitsRequest, Sequence
from stillhouse.token_texts import TokenTexts
from teacher_service.teacher import Teacher

MAX_CHARACTERS = 2000
MAX_TOKENS = 128
"""More positions than anybody looks through; a page of them is about 100 KB."""

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.1, 4.0
_CHOICES = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that may come next, and how likely it is at the temperature asked for."""

    text: str | None
    probability: float
    is_written: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """What the teacher expects after one token. `rest` is what all tokens but the choices have together."""

    number: int
    text: str | None
    choices: tuple[Choice, ...]
    rest: float


async def distributions(teacher: Teacher, tokens: TokenTexts, text: str, temperature: float) -> list[Position]:
    """Return the teacher's expectations after each token of a text.

    Raises:
        TeacherError: it cannot be asked; the message says what to change.
    """
    if len(text) > MAX_CHARACTERS:
        raise RequestTooLongError(f"the text has {len(text)} characters; {MAX_CHARACTERS} are the most here")
    if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise InvalidRequestError(
            f"temperature must be from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g} here; got {temperature:g}"
        )
    ids = await asyncio.to_thread(teacher.token_ids, text)
    if ids is None:
        raise InvalidRequestError("this teacher has no tokenizer, so that it cannot read text")
    if not ids:
        raise InvalidRequestError("the text holds no token; write some more")
    if len(ids) > MAX_TOKENS:
        raise RequestTooLongError(f"the text has {len(ids)} tokens; {MAX_TOKENS} are the most here")
    encoding = TopK(min(_CHOICES, teacher.description.vocabulary_size), "float32")
    request = LogitsRequest((Sequence(tuple(ids), positions=All()),), encoding, temperature)
    likeliest, written = await asyncio.gather(_ask(teacher, request), _written(teacher, ids, temperature))
    assert isinstance(likeliest, TopKLogits)  # noqa: S101 - what a top-k is answered with
    return _positions(tokens, ids, likeliest, written)


async def _written(teacher: Teacher, ids: SequenceOf[int], temperature: float) -> list[float]:
    """Return how likely each token but the first was held to be."""
    if len(ids) < 2:
        return []
    candidates = tuple((one,) for one in ids[1:])
    asked = Explicit(tuple(range(len(ids) - 1)))
    sequence = Sequence(tuple(ids), positions=asked, candidate_ids=candidates)
    payload = await _ask(teacher, LogitsRequest((sequence,), Candidates(), temperature))
    assert isinstance(payload, CandidateLogits)  # noqa: S101 - as above
    shares: list[float] = payload.tempered_log_probs.exp().flatten().tolist()
    return shares


async def _ask(teacher: Teacher, request: LogitsRequest) -> Payload:
    async with teacher.answering(teacher.check(request)) as answer:
        return decode_payload(answer.payloads[0])


def _positions(
    tokens: TokenTexts, ids: SequenceOf[int], likeliest: TopKLogits, written: SequenceOf[float]
) -> list[Position]:
    rows = zip(likeliest.token_ids.tolist(), likeliest.tempered_log_probs.exp().tolist(), strict=True)
    positions = []
    for number, (row_ids, row_shares) in enumerate(rows):
        next_id = ids[number + 1] if number + 1 < len(ids) else None
        choices = [
            Choice(text, share, one == next_id)
            for text, one, share in zip(tokens.texts(row_ids), row_ids, row_shares, strict=True)
        ]
        if next_id is not None and next_id not in row_ids:
            choices.append(Choice(tokens.texts([next_id])[0], written[number], is_written=True))
        rest = max(0.0, 1.0 - sum(choice.probability for choice in choices))
        positions.append(Position(number + 1, tokens.texts([ids[number]])[0], tuple(choices), rest))
    return positions
