"""An answer as JSON that people can read: tokens beside ids, log-probabilities beside logits, on demand or at once.

Written in parts, so that a large answer never stands whole in memory. JSON knows no infinity: a value that is not
finite is null. Numbers are the shortest that read as the same float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from stillhouse.codec import decode_payload
from stillhouse.errors import RequestTooLongError
from stillhouse.payload_header import Header, Kind, expected_headers
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.token_texts import TokenTexts
from teacher_service.answering import EncodedAnswer
from teacher_service.http_door.requests import KINDS

MAX_VALUES = 3_000_000
"""Most numbers in one JSON answer, about 30 MB of text. Scripts ask for Arrow, which has no such bound."""

_PART_VALUES = 65_536

_STATISTICS = ("log_normalizer", "log_tail_mass", "tempered_log_normalizer", "tempered_log_tail_mass")


def check_size(request: LogitsRequest, teacher: TeacherDescription) -> None:
    """See that an answer is small enough to be written as JSON.

    Raises:
        RequestTooLongError: it is not.
    """
    values = sum(map(_num_values, expected_headers(request, teacher)))
    if values > MAX_VALUES:
        raise RequestTooLongError(
            f"sequences: their answer would have {values} numbers, over the limit of {MAX_VALUES} in JSON; ask for "
            "less, for Arrow (accept: application/vnd.apache.arrow.stream), or over gRPC"
        )


def json_parts(request: LogitsRequest, answer: EncodedAnswer, tokens: TokenTexts | None) -> Iterator[bytes]:
    """Yield the text of an answer as `LogitsOut` describes it, with tokens beside ids where they are given."""
    timing = {
        "queue_seconds": answer.queue_seconds,
        "compute_seconds": answer.compute_seconds,
        "encode_seconds": answer.encode_seconds,
    }
    head = {"fingerprint": answer.fingerprint, "cache_hits": answer.cache_hits, "timing": timing}
    yield orjson.dumps(head)[:-1] + b',"payloads":['
    for index, (sequence, data) in enumerate(zip(request.sequences, answer.payloads, strict=True)):
        yield b"," if index else b""
        start: dict[str, Any] = {"kind": KINDS[type(request.encoding)], "positions": list(sequence.position_indices())}
        if tokens is not None:
            start |= {"input_tokens": tokens.own(sequence.token_ids), "input_texts": tokens.texts(sequence.token_ids)}
        yield orjson.dumps(start)[:-1]
        yield from _fields(decode_payload(data), tokens)
        yield b"}"
    yield b"]}"


def _fields(payload: Payload, tokens: TokenTexts | None) -> Iterator[bytes]:
    match payload:
        case DenseLogits(logits):
            yield from _field("logits", logits)
        case HiddenStates(hidden):
            yield from _field("hidden", hidden)
        case TopKLogits() | CandidateLogits():
            yield _values(temperature=payload.temperature, vocabulary_size=payload.vocabulary_size)
            yield from _ids(payload.token_ids, tokens)
            yield from _field("logits", payload.logits)
            yield from _log_probabilities(payload)
            for name in _STATISTICS:
                yield from _field(name, getattr(payload, name))
        case SampledCounts():
            yield _values(temperature=payload.temperature, vocabulary_size=payload.vocabulary_size, draws=payload.draws)
            yield from _samples(payload, tokens)


def _ids(ids: Tensor, tokens: TokenTexts | None) -> Iterator[bytes]:
    yield from _field("token_ids", ids)
    if tokens is not None:
        rows = ids.tolist()
        for name, read in (("tokens", tokens.own), ("texts", tokens.texts)):
            content = read(rows) if ids.dim() == 1 else list(map(read, rows))
            yield _values(**{name: content})


def _log_probabilities(payload: TopKLogits | CandidateLogits) -> Iterator[bytes]:
    logits, temperature = payload.logits.float(), payload.temperature
    yield from _field("log_probabilities", logits - payload.log_normalizer.unsqueeze(1))
    tempered = logits.double() / temperature - payload.tempered_log_normalizer.unsqueeze(1)
    yield from _field("tempered_log_probabilities", tempered.float())


def _samples(payload: SampledCounts, tokens: TokenTexts | None) -> Iterator[bytes]:
    ends = payload.offsets.tolist()
    rows = [slice(first, last) for first, last in pairwise(ends)]
    ids, counts = payload.token_ids.tolist(), payload.counts.tolist()
    yield _values(token_ids=[ids[row] for row in rows])
    if tokens is not None:
        yield _values(tokens=[tokens.own(ids[row]) for row in rows], texts=[tokens.texts(ids[row]) for row in rows])
    yield _values(counts=[counts[row] for row in rows])
    yield from _field("entropy", payload.entropy)


def _field(name: str, tensor: Tensor) -> Iterator[bytes]:
    """Yield `,"name":` and the tensor's values, a few rows at once."""
    yield b',"%s":[' % name.encode()
    rows = max(1, _PART_VALUES // max(1, tensor[:1].numel()))
    for start in range(0, len(tensor), rows):
        yield b"," if start else b""
        yield orjson.dumps(_array(tensor[start : start + rows]), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    yield b"]"


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    array: np.ndarray[Any, Any] = tensor.contiguous().numpy()
    return array


def _values(**content: Any) -> bytes:
    return b"," + orjson.dumps(content)[1:-1]


def _num_values(header: Header) -> int:
    match header.kind:
        case Kind.SAMPLED:
            return header.rows * (1 + 2 * min(header.count, header.width))
        case Kind.DENSE | Kind.HIDDEN:
            return header.rows * header.width
        case _:
            return header.rows * (4 + 4 * header.count)
