"""Protocol messages <-> requests and descriptions: both doors and the client speak the same dataclasses.

What a field means stands in the .proto, and what it may hold is checked by the dataclass; here the one becomes the
other. Knows nothing of channels, servers or payload bytes.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from itertools import chain

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import InvalidRequestError
from stillhouse.request import (
    All,
    CacheMode,
    Explicit,
    From,
    Last,
    Limits,
    LogitsRequest,
    Positions,
    Sequence,
    TeacherDescription,
)
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

_VALUE_TYPES: dict[ValueType, pb.ValueType.ValueType] = {
    "float32": pb.VALUE_TYPE_FLOAT32,
    "float16": pb.VALUE_TYPE_FLOAT16,
    "bfloat16": pb.VALUE_TYPE_BFLOAT16,
}
_CACHE_MODES: dict[CacheMode, pb.CacheMode.ValueType] = {
    "use": pb.CACHE_MODE_USE,
    "refresh": pb.CACHE_MODE_REFRESH,
    "bypass": pb.CACHE_MODE_BYPASS,
}
_KINDS: dict[type[Encoding], pb.EncodingKind.ValueType] = {
    Dense: pb.ENCODING_KIND_DENSE,
    Hidden: pb.ENCODING_KIND_HIDDEN,
    TopK: pb.ENCODING_KIND_TOP_K,
    Sampled: pb.ENCODING_KIND_SAMPLED,
    Candidates: pb.ENCODING_KIND_CANDIDATES,
}
_VALUE_TYPE_OF: dict[int, ValueType] = {number: name for name, number in _VALUE_TYPES.items()}
_CACHE_MODE_OF: dict[int, CacheMode] = {
    pb.CACHE_MODE_UNSPECIFIED: "use",
    **{int(number): name for name, number in _CACHE_MODES.items()},
}
_KIND_OF: dict[int, type[Encoding]] = {number: kind for kind, number in _KINDS.items()}


def request_to_proto(request: LogitsRequest) -> pb.LogitsRequest:
    """Return the message of a request.

    Raises:
        InvalidRequestError: a number too large for its field.
    """
    try:
        message = pb.LogitsRequest(
            sequences=[_sequence_to_proto(sequence) for sequence in request.sequences],
            temperature=request.temperature,
            vocabulary_size=request.vocabulary_size,
            cache_mode=_CACHE_MODES[request.cache_mode],
            expected_fingerprint=request.expected_fingerprint,
        )
        _set_encoding(message, request.encoding)
    except ValueError as error:
        raise InvalidRequestError(f"the request does not fit its message: {error}") from error
    return message


def request_from_proto(message: pb.LogitsRequest) -> LogitsRequest:
    """Return the request of a message.

    Raises:
        InvalidRequestError: a field that no teacher could serve, named with its value.
    """
    cache_mode = _CACHE_MODE_OF.get(message.cache_mode)
    if cache_mode is None:
        raise InvalidRequestError(f"cache_mode must be use, refresh or bypass; got number {message.cache_mode}")
    return LogitsRequest(
        sequences=tuple(_sequence_from_proto(index, part) for index, part in enumerate(message.sequences)),
        encoding=_encoding_from_proto(message),
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        vocabulary_size=message.vocabulary_size,
        cache_mode=cache_mode,
        expected_fingerprint=message.expected_fingerprint,
    )


def description_to_proto(description: TeacherDescription, *, include_tokens: bool = False) -> pb.GetTeacherResponse:
    """Return the message of a description, with the tokens only where they were asked for."""
    limits = description.limits
    return pb.GetTeacherResponse(
        model=description.model,
        fingerprint=description.fingerprint,
        weights_fingerprint=description.weights_fingerprint,
        tokenizer_fingerprint=description.tokenizer_fingerprint,
        vocabulary_size=description.vocabulary_size,
        tokenizer_size=description.tokenizer_size,
        hidden_size=description.hidden_size,
        encodings=[_KINDS[encoding] for encoding in description.encodings],
        limits=pb.Limits(
            max_sequences=limits.max_sequences,
            max_sequence_tokens=limits.max_sequence_tokens,
            max_request_tokens=limits.max_request_tokens,
            max_top_k=limits.max_top_k,
            max_draws=limits.max_draws,
            max_candidates=limits.max_candidates,
            max_message_bytes=limits.max_message_bytes,
        ),
        compute_dtype=description.compute_dtype,
        mode=description.mode,
        version=description.version,
        tokens=description.tokens if include_tokens else (),
        device_kind=description.device_kind,
    )


def description_from_proto(message: pb.GetTeacherResponse) -> TeacherDescription:
    """Return the description of a message; encodings of a newer contract are left out."""
    limits = message.limits
    return TeacherDescription(
        model=message.model,
        fingerprint=message.fingerprint,
        weights_fingerprint=message.weights_fingerprint,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocabulary_size=message.vocabulary_size,
        tokenizer_size=message.tokenizer_size,
        hidden_size=message.hidden_size,
        encodings=tuple(_KIND_OF[kind] for kind in message.encodings if kind in _KIND_OF),
        limits=Limits(
            max_sequences=limits.max_sequences,
            max_sequence_tokens=limits.max_sequence_tokens,
            max_request_tokens=limits.max_request_tokens,
            max_top_k=limits.max_top_k,
            max_draws=limits.max_draws,
            max_candidates=limits.max_candidates,
            max_message_bytes=limits.max_message_bytes,
        ),
        compute_dtype=message.compute_dtype,
        mode=message.mode,
        version=message.version,
        tokens=tuple(message.tokens),
        device_kind=message.device_kind,
    )


def _sequence_to_proto(sequence: Sequence) -> pb.Sequence:
    message = pb.Sequence(
        token_ids=sequence.token_ids,
        segment_lengths=sequence.segment_lengths,
        candidate_ids=chain.from_iterable(sequence.candidate_ids),
    )
    match sequence.positions:
        case Last():
            message.last.SetInParent()
        case All():
            message.all.SetInParent()
        case From(start):
            message.from_position.start = start
            message.from_position.SetInParent()
        case Explicit(indices):
            message.explicit.indices.extend(indices)
    return message


def _sequence_from_proto(index: int, message: pb.Sequence) -> Sequence:
    positions: Positions
    match message.WhichOneof("positions"):
        case "all":
            positions = All()
        case "from_position":
            positions = From(message.from_position.start)
        case "explicit":
            positions = Explicit(tuple(message.explicit.indices))
        case _:
            positions = Last()
    try:
        sequence = Sequence(tuple(message.token_ids), tuple(message.segment_lengths), positions)
        if not message.candidate_ids:
            return sequence
        return replace(sequence, candidate_ids=_candidate_rows(message.candidate_ids, sequence.num_positions))
    except InvalidRequestError as error:
        raise InvalidRequestError(f"sequences[{index}].{error}") from error


def _candidate_rows(ids: SequenceOf[int], positions: int) -> tuple[tuple[int, ...], ...]:
    each, rest = divmod(len(ids), positions)
    if rest:
        raise InvalidRequestError(
            f"candidate_ids must name as many ids for each of the {positions} positions asked for; "
            f"got {len(ids)} in all"
        )
    return tuple(tuple(ids[start : start + each]) for start in range(0, len(ids), each))


def _set_encoding(message: pb.LogitsRequest, encoding: Encoding) -> None:
    match encoding:
        case Dense(value_type):
            message.dense.value_type = _VALUE_TYPES[value_type]
        case Hidden(value_type):
            message.hidden.value_type = _VALUE_TYPES[value_type]
        case TopK(k, value_type):
            message.top_k.CopyFrom(pb.TopKEncoding(k=k, value_type=_VALUE_TYPES[value_type]))
        case Sampled(draws, seed):
            message.sampled.CopyFrom(pb.SampledEncoding(draws=draws, seed=seed))
        case Candidates(token_ids, value_type):
            value = _VALUE_TYPES[value_type]
            message.candidates.CopyFrom(pb.CandidatesEncoding(token_ids=token_ids, value_type=value))


def _encoding_from_proto(message: pb.LogitsRequest) -> Encoding:
    match message.WhichOneof("encoding"):
        case "dense":
            return Dense(_value_type("dense", message.dense.value_type, "float32"))
        case "hidden":
            return Hidden(_value_type("hidden", message.hidden.value_type, "bfloat16"))
        case "top_k":
            return TopK(message.top_k.k, _value_type("top_k", message.top_k.value_type, "float16"))
        case "sampled":
            return Sampled(message.sampled.draws, message.sampled.seed)
        case "candidates":
            value_type = _value_type("candidates", message.candidates.value_type, "float32")
            return Candidates(message.candidates.token_ids, value_type)
        case _:
            raise InvalidRequestError("encoding must be chosen: dense, hidden, top_k, sampled or candidates")


def value_type_to_proto(value_type: ValueType | None) -> pb.ValueType.ValueType:
    """Return the number of a value type; None leaves the choice to the service."""
    return pb.VALUE_TYPE_UNSPECIFIED if value_type is None else _VALUE_TYPES[value_type]


def _value_type(field: str, number: int, default: ValueType) -> ValueType:
    if number == pb.VALUE_TYPE_UNSPECIFIED:
        return default
    if number not in _VALUE_TYPE_OF:
        raise InvalidRequestError(f"{field}.value_type must be float32, float16 or bfloat16; got number {number}")
    return _VALUE_TYPE_OF[number]
