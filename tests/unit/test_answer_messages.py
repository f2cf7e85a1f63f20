"""The messages that carry payloads are protobuf's to the byte, whoever writes them and whoever reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from stillhouse.answer_messages import Chunk, RawAnswer, read_answer, read_stream_message, write_answer, write_chunk
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

# Lengths at which a length takes another byte stand beside short ones.
payload_bytes = st.one_of(
    st.binary(max_size=20), st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2_097_152]).map(bytes)
)
timings = st.builds(
    pb.Timing,
    queue_seconds=st.floats(allow_nan=False),
    compute_seconds=st.floats(allow_nan=False),
    encode_seconds=st.just(0.0),
)
answers = st.builds(
    RawAnswer, st.lists(payload_bytes, max_size=4), st.text(max_size=40), timings, st.integers(0, 2**32 - 1)
)
# What a hostile service could send: fields in any order, of any number and type, cut off anywhere, long numbers.
pieces = st.sampled_from(
    [b"\x0a", b"\x12", b"\x1a", b"\x20", b"\x08", b"\x00", b"\x01", b"\x80\x00", b"\x8a\x00", b"\xff" * 10, b"\x7f"]
)
wire = st.lists(st.one_of(pieces, st.binary(max_size=6)), max_size=12).map(b"".join)


def message_of(answer: RawAnswer) -> pb.ComputeLogitsResponse:
    return pb.ComputeLogitsResponse(
        payloads=list(map(bytes, answer.payloads)),
        fingerprint=answer.fingerprint,
        timing=answer.timing,
        cache_hits=answer.cache_hits,
    )


def contents(answer: RawAnswer | pb.ComputeLogitsResponse) -> tuple[object, ...]:
    """Return all that is said; whether a timing of zeros was sent makes no difference."""
    timing = answer.timing.SerializeToString(deterministic=True)
    return list(map(bytes, answer.payloads)), answer.fingerprint, timing, answer.cache_hits


@given(answers)
def test_an_answer_is_written_as_protobuf_writes_it(answer: RawAnswer) -> None:
    views = [memoryview(payload) for payload in answer.payloads]
    assert write_answer(replace(answer, payloads=views)) == message_of(answer).SerializeToString()


@given(answers)
def test_an_answer_comes_back_as_it_was_written(answer: RawAnswer) -> None:
    assert contents(read_answer(write_answer(answer))) == contents(answer)


@given(answers.flatmap(lambda answer: st.permutations(_fields(write_answer(answer)))))
def test_the_order_of_fields_changes_no_answer_beyond_the_order_of_payloads(fields: list[bytes]) -> None:
    data = b"".join(fields)
    assert contents(read_answer(data)) == contents(pb.ComputeLogitsResponse.FromString(data))


@given(wire)
@example(b"\x0a\x05abc")  # a payload longer than the message
@example(b"\x0a\x83\x00abc")  # a length written long
@example(b"\x0a\xff\xff\xff\xff\x0f")
def test_whatever_comes_an_answer_is_read_or_refused_as_protobuf_does(data: bytes) -> None:
    try:
        expected = pb.ComputeLogitsResponse.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_answer(data)
    else:
        assert contents(read_answer(data)) == contents(expected)


@given(st.integers(0, 2**64 - 1), st.lists(st.binary(max_size=300), min_size=1, max_size=3).filter(any))
def test_a_chunk_is_written_as_protobuf_writes_it_and_comes_back(offset: int, parts: list[bytes]) -> None:
    data = b"".join(parts)
    written = write_chunk(offset, [memoryview(part) for part in parts])
    assert written == pb.StreamLogitsResponse(chunk=pb.StreamChunk(offset=offset, data=data)).SerializeToString()
    read = read_stream_message(written)
    assert isinstance(read, Chunk)
    assert (read.offset, bytes(read.data)) == (offset, data)


@given(
    st.one_of(
        wire,
        wire.map(lambda body: b"\x12" + bytes([len(body) & 0x7F]) + body),
        st.binary(max_size=9).map(lambda data: write_chunk(300, [b"x" + data]) + data),
    )
)
@example(b"\x12\x02\x08\x05")  # a chunk without data
@example(b"\x12\x04\x08\x05\x12\x00")  # with none in it
@example(b"\x12\x06\x12\x01a\x12\x01b")  # with two fields of it, of which the last counts
@example(b"\x12\x03\x12\x01a\x12\x03\x12\x01b")  # two chunks, which become one
@example(b"\x12\x03\x12\x01a\x1a\x00")  # a chunk, and then a trailer in its place
def test_whatever_comes_in_a_stream_is_read_or_refused_as_protobuf_does(data: bytes) -> None:
    try:
        expected = pb.StreamLogitsResponse.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_stream_message(data)
        return
    read = read_stream_message(data)
    if expected.WhichOneof("part") == "chunk":
        assert isinstance(read, Chunk)
        assert (read.offset, bytes(read.data)) == (expected.chunk.offset, expected.chunk.data)
    else:
        assert read == expected


def test_what_is_read_is_not_copied() -> None:
    data = write_answer(RawAnswer([b"payload"], "f", pb.Timing(), 0))
    assert [payload.obj for payload in read_answer(data).payloads if isinstance(payload, memoryview)] == [data]
    chunk = read_stream_message(write_chunk(7, [b"payload"]))
    assert isinstance(chunk, Chunk)
    assert isinstance(chunk.data, memoryview)


def _fields(data: bytes) -> list[bytes]:
    """Return the top-level fields of a message that protobuf wrote."""
    message = pb.ComputeLogitsResponse.FromString(data)
    parts = [pb.ComputeLogitsResponse(payloads=[payload]) for payload in message.payloads]
    parts += [
        pb.ComputeLogitsResponse(fingerprint=message.fingerprint),
        pb.ComputeLogitsResponse(timing=message.timing),
    ]
    return [part.SerializeToString() for part in parts]
