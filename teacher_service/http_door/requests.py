"""The JSON that asks <-> `LogitsRequest`. For people and scripts; machines in a hurry use gRPC.

What a field may hold is checked by `stillhouse.request`; the schema repeats it, for readers of the OpenAPI page. JSON
is read as the standard has it (no NaN, no lone surrogates), in time and memory proportional to its length.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Strict, Tag, ValidationError, WithJsonSchema

from stillhouse.encodings import MAX_SEED, Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.request import (
    MAX_TOKEN_ID,
    All,
    CacheMode,
    Explicit,
    From,
    Last,
    LogitsRequest,
    Positions,
    Sequence,
)

KINDS: dict[type[Encoding], str] = {
    Dense: "dense",
    Hidden: "hidden",
    TopK: "top_k",
    Sampled: "sampled",
    Candidates: "candidates",
}
"""What an encoding is called in JSON."""

_SHOWN_ERRORS = 5

_Number = Annotated[int, Strict()]
_Id = Annotated[int, Strict(), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID})]
_Length = Annotated[int, Strict(), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TOKEN_ID})]
# One wrong id among millions is reason enough, and the only one that is told.
_Ids = Annotated[list[_Id], FailFast()]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FromPosition(_Strict):
    """A position and all after it."""

    start: _Id = Field(alias="from", description="The first position answered, below the sequence's length.")


class ExplicitPositions(_Strict):
    """Exactly these positions."""

    explicit: _Ids = Field(
        json_schema_extra={"minItems": 1},
        description="Strictly increasing, each below the sequence's length.",
    )


def _kind_of_positions(value: Any) -> str:
    if isinstance(value, dict):
        return "from" if "from" in value else "explicit"
    return "name"


class SequenceIn(_Strict):
    """One sequence of token ids and what is asked about it."""

    token_ids: _Ids = Field(json_schema_extra={"minItems": 1}, description="Each below the teacher's vocabulary size.")
    segment_lengths: Annotated[list[_Length], FailFast()] = Field(
        [], description="Lengths of the documents packed into the sequence, which do not attend to each other."
    )
    positions: Annotated[
        Annotated[Literal["last", "all"], Tag("name")]
        | Annotated[FromPosition, Tag("from")]
        | Annotated[ExplicitPositions, Tag("explicit")],
        Discriminator(_kind_of_positions),
    ] = Field("last", description="Which positions are answered.")
    candidate_ids: Annotated[list[_Ids], FailFast()] = Field(
        [],
        description="With `candidates` that name no token_ids: for each position asked for, strictly increasing ids, "
        "as many as for every other.",
    )

    def to_sequence(self, index: int) -> Sequence:
        """Return the sequence.

        Raises:
            InvalidRequestError: a field that no teacher could serve.
        """
        try:
            return Sequence(
                tuple(self.token_ids),
                tuple(self.segment_lengths),
                self._positions(),
                tuple(map(tuple, self.candidate_ids)),
            )
        except InvalidRequestError as error:
            raise InvalidRequestError(f"sequences[{index}].{error}") from error

    def _positions(self) -> Positions:
        match self.positions:
            case FromPosition(start=start):
                return From(start)
            case ExplicitPositions(explicit=indices):
                return Explicit(tuple(indices))
            case "all":
                return All()
            case _:
                return Last()


class DenseIn(_Strict):
    """All N logits of a position."""

    kind: Literal["dense"]
    value_type: Literal["float32", "float16", "bfloat16"] = "float32"

    def to_encoding(self) -> Encoding:
        """Return the encoding."""
        return Dense(self.value_type)


class HiddenIn(_Strict):
    """The final hidden state; `GET /v1/output-head` gives what rebuilds the logits from it."""

    kind: Literal["hidden"]
    value_type: Literal["bfloat16", "float32"] = "bfloat16"

    def to_encoding(self) -> Encoding:
        """Return the encoding."""
        return Hidden(self.value_type)


class TopKIn(_Strict):
    """The k largest logits, and how much the others weigh."""

    kind: Literal["top_k"]
    k: _Number = Field(json_schema_extra={"minimum": 1}, description="From 1 to N.")
    value_type: Literal["float16", "float32"] = "float16"

    def to_encoding(self) -> Encoding:
        """Return the encoding."""
        return TopK(self.k, self.value_type)


class SampledIn(_Strict):
    """Draws from softmax(logits / temperature)."""

    kind: Literal["sampled"]
    draws: _Number = Field(50, json_schema_extra={"minimum": 1}, description="For each position.")
    seed: _Number = Field(0, json_schema_extra={"minimum": 0, "maximum": MAX_SEED})

    def to_encoding(self) -> Encoding:
        """Return the encoding."""
        return Sampled(self.draws, self.seed)


class CandidatesIn(_Strict):
    """Logits at ids that you name, and how much the others weigh."""

    kind: Literal["candidates"]
    token_ids: _Ids = Field(
        [], description="Strictly increasing, the same at every position; none: `candidate_ids` of each sequence."
    )
    value_type: Literal["float32", "float16"] = "float32"

    def to_encoding(self) -> Encoding:
        """Return the encoding."""
        return Candidates(self.token_ids, self.value_type)


class LogitsIn(_Strict):
    """What is asked: a batch of sequences of any lengths, and the form of the answer."""

    sequences: Annotated[list[SequenceIn], FailFast()]
    encoding: DenseIn | HiddenIn | TopKIn | SampledIn | CandidatesIn = Field(
        DenseIn(kind="dense"), discriminator="kind"
    )
    temperature: float = Field(
        1.0,
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"exclusiveMinimum": 0},
        description="Divides the logits before every softmax.",
    )
    vocabulary_size: _Number = Field(
        0,
        json_schema_extra={"minimum": 0, "maximum": MAX_TOKEN_ID + 1},
        description="N: log-normalisers, draws and dense values cover the ids below it; 0 is the whole vocabulary.",
    )
    cache_mode: CacheMode = Field(
        "use",
        description="use: answer from the cache, and remember; refresh: compute anew, overwrite; bypass: do neither.",
    )
    expected_fingerprint: str = Field(
        "", description="Refuse (412) where the teacher's fingerprint is another; empty: any will do."
    )
    include_tokens: bool = Field(
        default=False,
        strict=True,
        description="In JSON answers, put tokens and what they read as beside ids.",
    )

    @classmethod
    def from_json(cls, data: bytes) -> LogitsIn:
        """Read a body. Takes a tenth of a second for a megabyte of ids at most: call it in a thread.

        Raises:
            InvalidRequestError: it is not what the schema describes; the message names each field.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InvalidRequestError(_message(error)) from None

    def to_request(self) -> LogitsRequest:
        """Return the request.

        Raises:
            InvalidRequestError: a field that no teacher could serve, named with its value.
        """
        return LogitsRequest(
            sequences=tuple(part.to_sequence(index) for index, part in enumerate(self.sequences)),
            encoding=self.encoding.to_encoding(),
            temperature=self.temperature,
            vocabulary_size=self.vocabulary_size,
            cache_mode=self.cache_mode,
            expected_fingerprint=self.expected_fingerprint,
        )


def _message(error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{field_of(one['loc'])}: {one['msg']}" for one in islice(errors, _SHOWN_ERRORS)]
    more = len(errors) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def field_of(location: tuple[int | str, ...]) -> str:
    """Return the name of a field as people write it: `sequences[0].token_ids`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "body"
