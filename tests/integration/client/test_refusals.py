"""What the client does not believe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from stillhouse.client import TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Encoding, TopK
from stillhouse.errors import (
    CodecError,
    FingerprintMismatchError,
    StreamError,
    TeacherInternalError,
)
from stillhouse.payloads import DenseLogits, Payload
from stillhouse.request import LogitsRequest
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from tests.asked import every_position
from tests.integration.client.table_teacher import (
    DESCRIPTION,
    LARGE,
    SMALL,
    TABLE,
    VOCABULARY_SIZE,
    Ask,
    TableServicer,
    about,
)


def test_a_teacher_that_becomes_another_is_refused_naming_both(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client:
        client.answer(SMALL)
        servicer.description = dataclasses.replace(DESCRIPTION, fingerprint="bb" * 16)
        for request in (SMALL, LARGE):
            with pytest.raises(FingerprintMismatchError, match=f"{'aa' * 16}.*{'bb' * 16}"):
                client.answer(request)


@pytest.mark.parametrize("request_", [SMALL, LARGE], ids=["unary", "stream"])
def test_an_answer_of_another_teacher_is_refused_whatever_the_service_checks(
    servicer: TableServicer, address: str, request_: LogitsRequest
) -> None:
    with TeacherClient(address) as client:
        client.describe()

        def become_another(payloads: list[bytes]) -> list[bytes]:
            servicer.description = dataclasses.replace(DESCRIPTION, fingerprint="bb" * 16)
            return payloads

        servicer.alter = become_another
        with pytest.raises(FingerprintMismatchError, match=f"{'bb' * 16}.*{'aa' * 16}"):
            client.answer(request_)


def test_another_teacher_is_named_before_its_sizes_are_wondered_at(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client:
        client.describe()

        def become_another(_: list[bytes]) -> list[bytes]:
            servicer.description = dataclasses.replace(DESCRIPTION, fingerprint="bb" * 16)
            return [dense_payload(6000, VOCABULARY_SIZE - 1)]

        servicer.alter = become_another
        with pytest.raises(FingerprintMismatchError):
            client.answer(LARGE)


def test_another_teacher_than_the_expected_is_refused(ask: Ask) -> None:
    with pytest.raises(FingerprintMismatchError, match=f"{'aa' * 16}.*cc"):
        ask(SMALL, expected_fingerprint="cc")
    assert ask(SMALL, expected_fingerprint=DESCRIPTION.fingerprint).payloads
    with pytest.raises(FingerprintMismatchError, match=f"cc.*{'aa' * 16}"):
        ask(dataclasses.replace(SMALL, expected_fingerprint="cc"))


def flip_a_bit(payloads: list[bytes]) -> list[bytes]:
    data = bytearray(payloads[0])
    data[-1] ^= 1
    return [bytes(data), *payloads[1:]]


@pytest.mark.parametrize("request_", [SMALL, LARGE], ids=["unary", "stream"])
def test_a_corrupted_payload_is_refused(ask: Ask, servicer: TableServicer, request_: LogitsRequest) -> None:
    servicer.alter = flip_a_bit
    with pytest.raises(CodecError, match="checksum"):
        ask(request_)


def dense_payload(rows: int, width: int = VOCABULARY_SIZE, dtype: torch.dtype = torch.float32) -> bytes:
    return encode_payload(DenseLogits(torch.zeros(rows, width, dtype=dtype)))


def encoded(rows: int, encoding: Encoding, temperature: float = 1.0) -> Payload:
    return encode_logits(
        [TABLE[:rows]],
        encoding,
        sequence=every_position(rows),
        temperature=temperature,
        vocabulary_size=VOCABULARY_SIZE,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [dense_payload(3)] * 2,
        [dense_payload(2)],
        [dense_payload(3, VOCABULARY_SIZE - 1)],
        [dense_payload(3, dtype=torch.float16)],
        [encode_payload(encoded(3, TopK(3)))],
    ],
    ids=["none", "two", "rows", "width", "value type", "kind"],
)
def test_an_answer_to_another_question_is_refused(ask: Ask, servicer: TableServicer, wrong: list[bytes]) -> None:
    servicer.alter = lambda _: wrong
    with pytest.raises(TeacherInternalError, match="asked for"):
        ask(SMALL)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (TopK(3), TopK(4)),
        (Candidates((0, 7)), Candidates((0, 8))),
    ],
    ids=repr,
)
def test_other_ids_than_were_asked_for_are_refused(
    ask: Ask, servicer: TableServicer, asked: Encoding, given: Encoding
) -> None:
    other = encoded(3, given)
    servicer.alter = lambda _: [encode_payload(other)]
    with pytest.raises(TeacherInternalError, match="asked for"):
        ask(about((0, 1, 2), encoding=asked))


def test_another_temperature_is_refused(ask: Ask, servicer: TableServicer) -> None:
    other = encoded(1, TopK(3), temperature=2.0)
    servicer.alter = lambda _: [encode_payload(other)]
    with pytest.raises(TeacherInternalError, match="asked for"):
        ask(about((0,), encoding=TopK(3), temperature=2.5))


Parts = list[pb.StreamLogitsResponse]


def announce(*sizes: int) -> Callable[[Parts], Parts]:
    header = pb.StreamHeader(payload_bytes=sizes, fingerprint=DESCRIPTION.fingerprint)
    return lambda parts: [pb.StreamLogitsResponse(header=header), *parts[1:]]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda _: [], "before its header"),
        (lambda parts: parts[1:], "starts with its header"),
        (lambda parts: parts[:-1], "without its trailer"),
        (lambda parts: parts[:-2], "ended after"),
        (lambda parts: [parts[0], parts[2], parts[3]], "missing"),
        (lambda parts: [parts[0], parts[2], parts[1], parts[3]], "missing"),
        (lambda parts: [parts[0], parts[1], *parts[1:]], "before"),
        (lambda parts: [parts[0], *parts], "two headers"),
        (lambda parts: [*parts, parts[-1]], "after its trailer"),
        (lambda parts: [parts[0], pb.StreamLogitsResponse(), *parts[1:]], "neither header"),
        (announce(), "0 are announced"),
        (announce(2**60), "are announced"),
        (announce(47), "are announced"),
    ],
)
def test_a_stream_that_is_not_a_whole_answer_is_refused(
    ask_grpc: Ask, servicer: TableServicer, alter: Callable[[Parts], Parts], message: str
) -> None:
    servicer.alter_stream = alter
    with pytest.raises(StreamError, match=message):
        ask_grpc(LARGE)
