"""A client's half of an exchange, without the waiting: read what comes back, believe none of it.

Both clients (sync and asyncio) do the same after a call; that stands here, and in `cutting` what they do before it.
Knows nothing of channels, deadlines or retries.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from stillhouse.answer_messages import Chunk, RawAnswer
from stillhouse.chunks import Joiner
from stillhouse.codec import decode_with_headers
from stillhouse.cutting import Part
from stillhouse.encodings import Candidates
from stillhouse.errors import CodecError, FingerprintMismatchError, StreamError, TeacherInternalError
from stillhouse.payloads import CandidateLogits, Payload
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

_M = TypeVar("_M")


_SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name
COMPUTE_LOGITS, STREAM_LOGITS = f"/{_SERVICE}/ComputeLogits", f"/{_SERVICE}/StreamLogits"
"""The methods whose answers are read by `answer_messages`, where the generated stub would have protobuf copy them."""


def checked_message(message: _M | None) -> _M:
    """Return what a call gave: for bytes that are no message gRPC may hand out None instead of an error.

    Raises:
        CodecError: it did.
    """
    if message is None:
        raise CodecError("the answer is no message of the contract: it was altered on its way")
    return message


class StreamReader:
    """Reads an answer that comes as a stream: a header, chunks, a trailer."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._fingerprint = ""
        self._joiner: Joiner | None = None
        self._trailer: pb.StreamTrailer | None = None

    def take(self, message: pb.StreamLogitsResponse | Chunk) -> None:
        """Take the next message.

        Raises:
            StreamError: a message out of its place, sizes that cannot be those of the answer, or a faulty chunk.
        """
        which = "chunk" if isinstance(message, Chunk) else message.WhichOneof("part")
        if self._trailer is not None:
            raise StreamError(f"the stream goes on after its trailer, with a {which}")
        if not isinstance(message, Chunk) and which == "header":
            self._take_header(message.header)
        elif self._joiner is None:
            raise StreamError(f"a stream starts with its header; got {which}")
        elif isinstance(message, Chunk):
            self._joiner.add(message.offset, message.data)
        elif which == "trailer":
            self._trailer = message.trailer
        else:
            raise StreamError("a message of the stream holds neither header, chunk nor trailer")

    def _take_header(self, header: pb.StreamHeader) -> None:
        if self._joiner is not None:
            raise StreamError("the stream has two headers")
        check_fingerprint(header.fingerprint, self._part.request.expected_fingerprint)
        expected = self._part.headers
        if len(header.payload_bytes) != len(expected):
            raise StreamError(f"{len(expected)} payloads were asked for; {len(header.payload_bytes)} are announced")
        for index, (size, one) in enumerate(zip(header.payload_bytes, expected, strict=True)):
            least, most = one.size_bounds()
            if not least <= size <= most:
                raise StreamError(
                    f"the payload of sequences[{index}] has {least} to {most} bytes; {size} are announced"
                )
        self._fingerprint = header.fingerprint
        self._joiner = Joiner(header.payload_bytes, max_bytes=self._part.most_bytes)

    def finish(self) -> RawAnswer:
        """Return the answer when the stream has ended.

        Raises:
            StreamError: it ended early.
        """
        if self._joiner is None:
            raise StreamError("the stream ended before its header")
        payloads = self._joiner.finish()
        if self._trailer is None:
            raise StreamError("the stream ended without its trailer")
        return RawAnswer(payloads, self._fingerprint, self._trailer.timing, self._trailer.cache_hits)


def check_fingerprint(fingerprint: str, expected: str) -> None:
    """See that a teacher is the expected one; "" expects any.

    Raises:
        FingerprintMismatchError: it is another.
    """
    if expected not in ("", fingerprint):
        raise FingerprintMismatchError(
            f"the teacher's fingerprint is {fingerprint!r}, where {expected!r} was expected: its weights or settings "
            "are others; start the run anew, or serve the earlier teacher"
        )


def decode_answer(part: Part, raw: RawAnswer) -> Answer:
    """Decode what came back for a part, and see that it is what was asked.

    Raises:
        CodecError: bytes that are no payload.
        FingerprintMismatchError: another teacher's answer.
        TeacherInternalError: payloads of another number, kind, shape, value type or temperature.
    """
    check_fingerprint(raw.fingerprint, part.request.expected_fingerprint)
    if len(raw.payloads) != len(part.headers):
        raise TeacherInternalError(f"{len(part.headers)} payloads were asked for; {len(raw.payloads)} came")
    payloads = []
    for index, ((header, payload), expected) in enumerate(
        zip(decode_with_headers(raw.payloads), part.headers, strict=True)
    ):
        if header != expected:
            raise TeacherInternalError(f"the payload of sequences[{index}] is {header}, where {expected} was asked for")
        _check_candidates(index, payload, part.request)
        payloads.append(payload)
    timing = raw.timing
    return Answer(
        payloads=tuple(payloads),
        fingerprint=raw.fingerprint,
        cache_hits=raw.cache_hits,
        queue_seconds=timing.queue_seconds,
        compute_seconds=timing.compute_seconds,
        encode_seconds=timing.encode_seconds,
        num_bytes=sum(map(len, raw.payloads)),
    )


def _check_candidates(index: int, payload: Payload, request: LogitsRequest) -> None:
    if not isinstance(payload, CandidateLogits) or not isinstance(request.encoding, Candidates):
        return
    expected = request.encoding.token_ids or request.sequences[index].candidate_ids
    if not torch.equal(payload.token_ids, torch.tensor(expected, dtype=torch.int32)):
        raise TeacherInternalError(f"the payload of sequences[{index}] has other token_ids than were asked for")
