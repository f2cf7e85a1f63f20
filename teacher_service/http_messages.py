"""The JSON of the HTTP door <-> requests and payloads. For people and scripts; machines in a hurry use gRPC.

What a field may hold is checked by `stillhouse.request`. JSON knows no infinity: a value that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt
from torch import Tensor

from stillhouse.codec import decode_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.request import All, CacheMode, Explicit, From, Last, LogitsRequest, Positions, Sequence
from stillhouse.request import TeacherDescription as Description
from teacher_service.teacher import EncodedAnswer


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FromPosition(_Strict):
    """A position and all after it."""

    start: int = Field(alias="from")


class ExplicitPositions(_Strict):
    """Exactly these positions, strictly increasing."""

    explicit: list[int]


class SequenceIn(_Strict):
    """One sequence of token ids and what is asked about it."""

    token_ids: list[StrictInt]
    segment_lengths: list[StrictInt] = []
    positions: Literal["last", "all"] | FromPosition | ExplicitPositions = "last"

    def to_sequence(self, index: int) -> Sequence:
        """Return the sequence.

        Raises:
            InvalidRequestError: a field that no teacher could serve.
        """
        try:
            return Sequence(tuple(self.token_ids), tuple(self.segment_lengths), self._positions())
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
    """All logits."""

    kind: Literal["dense"]
    value_type: Literal["float32", "float16", "bfloat16"] = "float32"


class HiddenIn(_Strict):
    """The final hidden state."""

    kind: Literal["hidden"]
    value_type: Literal["bfloat16", "float32"] = "bfloat16"


class TopKIn(_Strict):
    """The k largest logits."""

    kind: Literal["top_k"]
    k: int
    value_type: Literal["float16", "float32"] = "float16"


class SampledIn(_Strict):
    """Draws from softmax(logits / temperature)."""

    kind: Literal["sampled"]
    draws: int = 50
    seed: int = 0


class CandidatesIn(_Strict):
    """Logits at named ids."""

    kind: Literal["candidates"]
    token_ids: list[StrictInt]
    value_type: Literal["float32", "float16"] = "float32"


EncodingIn = Annotated[DenseIn | HiddenIn | TopKIn | SampledIn | CandidatesIn, Field(discriminator="kind")]


class LogitsIn(_Strict):
    """What is asked: a batch of sequences of any lengths, and the form of the answer."""

    sequences: list[SequenceIn]
    encoding: EncodingIn = DenseIn(kind="dense")
    temperature: float = 1.0
    vocabulary_size: int = 0
    cache_mode: CacheMode = "use"
    expected_fingerprint: str = ""

    def to_request(self) -> LogitsRequest:
        """Return the request.

        Raises:
            InvalidRequestError: a field that no teacher could serve, named with its value.
        """
        return LogitsRequest(
            sequences=tuple(part.to_sequence(index) for index, part in enumerate(self.sequences)),
            encoding=_encoding(self.encoding),
            temperature=self.temperature,
            vocabulary_size=self.vocabulary_size,
            cache_mode=self.cache_mode,
            expected_fingerprint=self.expected_fingerprint,
        )


class TimingOut(BaseModel):
    """Where the time went, in seconds."""

    queue_seconds: float
    compute_seconds: float
    encode_seconds: float


class PayloadOut(BaseModel):
    """The answer to one sequence: one row per position. Which fields are there depends on the encoding."""

    positions: list[int]
    logits: list[list[float | None]] | None = None
    token_ids: list[list[int]] | None = None
    log_normalizer: list[float] | None = None
    log_tail_mass: list[float | None] | None = None
    tempered_log_normalizer: list[float] | None = None
    tempered_log_tail_mass: list[float | None] | None = None


class LogitsOut(BaseModel):
    """The answer to a request, one payload per sequence."""

    fingerprint: str
    cache_hits: int
    timing: TimingOut
    payloads: list[PayloadOut]


def answer_to_json(request: LogitsRequest, answer: EncodedAnswer) -> str:
    """Return the JSON of an answer, as `LogitsOut` describes it. Slow for large answers: call it in a thread."""
    timing = TimingOut(
        queue_seconds=answer.queue_seconds, compute_seconds=answer.compute_seconds, encode_seconds=answer.encode_seconds
    )
    head = {"fingerprint": answer.fingerprint, "cache_hits": answer.cache_hits, "timing": timing.model_dump()}
    payloads = (
        _payload_to_json(sequence, data) for sequence, data in zip(request.sequences, answer.payloads, strict=True)
    )
    return f'{json.dumps(head)[:-1]}, "payloads": [{", ".join(payloads)}]}}'


def description_to_json(description: Description, *, include_tokens: bool) -> dict[str, Any]:
    """Return what is served, under the contract's names; the tokens only where they were asked for."""
    limits = description.limits
    content = {name: getattr(description, name) for name in description.__slots__}
    content["encodings"] = [encoding.__name__ for encoding in description.encodings]
    content["limits"] = {name: getattr(limits, name) for name in limits.__slots__}
    if not include_tokens:
        del content["tokens"]
    return content


def _payload_to_json(sequence: Sequence, data: bytes) -> str:
    payload = decode_payload(data)
    fields = {"positions": json.dumps(list(sequence.position_indices()))}
    for name in payload.__slots__:
        value = getattr(payload, name)
        # Row by row, so that other threads run between two of them.
        fields[name] = _tensor_to_json(value) if isinstance(value, Tensor) else json.dumps(value)
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def _tensor_to_json(tensor: Tensor) -> str:
    if tensor.dim() == 1:
        return json.dumps(_finite(tensor))
    return "[" + ", ".join(json.dumps(_finite(row)) for row in tensor) + "]"


def _finite(row: Tensor) -> list[float | int | None]:
    values = row.tolist()
    if not row.is_floating_point() or row.isfinite().all():
        return list(values)
    return [value if math.isfinite(value) else None for value in values]


def _encoding(encoding: DenseIn | HiddenIn | TopKIn | SampledIn | CandidatesIn) -> Encoding:
    match encoding:
        case DenseIn():
            return Dense(encoding.value_type)
        case HiddenIn():
            return Hidden(encoding.value_type)
        case TopKIn():
            return TopK(encoding.k, encoding.value_type)
        case SampledIn():
            return Sampled(encoding.draws, encoding.seed)
        case CandidatesIn():
            return Candidates(encoding.token_ids, encoding.value_type)


def value_error_message(errors: Iterator[Any]) -> str:
    """Return one line for what is wrong with a body, naming each field."""
    return "; ".join(f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}" for e in errors)
