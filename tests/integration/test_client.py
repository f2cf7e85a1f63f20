"""The client against a real gRPC server: what it asks, what it believes, and how often it tries."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import grpc
import numpy as np
import pytest
import torch

from stillhouse.chunks import split
from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import (
    ERROR_BY_GRPC_CODE,
    CodecError,
    ConfigurationError,
    EncodingNotOfferedError,
    FingerprintMismatchError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLongError,
    StreamError,
    TeacherError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
    VocabularyMismatchError,
)
from stillhouse.messages import description_to_proto, request_from_proto
from stillhouse.payloads import DenseLogits, Payload, TopKLogits
from stillhouse.providers import Answer
from stillhouse.request import All, Explicit, From, Last, Limits, LogitsRequest, Sequence, TeacherDescription
from stillhouse.status import status_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as rpc

VOCABULARY_SIZE = 50
DESCRIPTION = TeacherDescription(
    model="table", fingerprint="aa" * 16, weights_fingerprint="", tokenizer_fingerprint="",
    vocabulary_size=VOCABULARY_SIZE, tokenizer_size=VOCABULARY_SIZE, hidden_size=0, encodings=(Dense, TopK, Candidates),
    limits=Limits(max_sequences=4, max_sequence_tokens=6000, max_request_tokens=6000), compute_dtype="float32",
    mode="deterministic", version="test", tokens=tuple(map(chr, range(VOCABULARY_SIZE))),
)  # fmt: skip
TABLE = torch.randn(VOCABULARY_SIZE, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(0))

Fault = Callable[[grpc.ServicerContext], None]


@dataclass
class TableServicer(rpc.TeacherServiceServicer):
    """Answers from a table of logits by token id; each pending fault is the end of one call."""

    description: TeacherDescription = DESCRIPTION
    faults: list[Fault] = field(default_factory=list)
    alter: Callable[[list[bytes]], list[bytes]] = list
    alter_stream: Callable[[list[pb.StreamLogitsResponse]], list[pb.StreamLogitsResponse]] = list
    break_off_after: int | None = None
    calls: list[str] = field(default_factory=list)
    requests: list[LogitsRequest] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def _enter(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
        if self.faults:
            self.faults.pop(0)(context)

    def _payloads(self, message: pb.LogitsRequest, context: grpc.ServicerContext) -> list[bytes]:
        request = request_from_proto(message)
        self.requests.append(request)
        try:
            request.check(self.description)
        except TeacherError as error:
            fail(error)(context)
        n = request.effective_vocabulary_size(VOCABULARY_SIZE)
        payloads = []
        for sequence in request.sequences:
            ids = [sequence.token_ids[index] for index in sequence.position_indices()]
            payload = encode_logits([TABLE[ids]], request.encoding, temperature=request.temperature, vocabulary_size=n)
            payloads.append(encode_payload(payload))
        return self.alter(payloads)

    def GetTeacher(  # noqa: N802  # the contract's name
        self, request: pb.GetTeacherRequest, context: grpc.ServicerContext
    ) -> pb.GetTeacherResponse:
        self._enter("GetTeacher", context)
        return description_to_proto(self.description, include_tokens=request.include_tokens)

    def GetOutputHead(  # noqa: N802  # the contract's name
        self, request: pb.GetOutputHeadRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetOutputHeadResponse]:
        raise NotImplementedError

    def ComputeLogits(  # noqa: N802  # the contract's name
        self, request: pb.ComputeLogitsRequest, context: grpc.ServicerContext
    ) -> pb.ComputeLogitsResponse:
        self._enter("ComputeLogits", context)
        return pb.ComputeLogitsResponse(
            payloads=self._payloads(request.request, context),
            fingerprint=self.description.fingerprint,
            timing=pb.Timing(queue_seconds=1, compute_seconds=2, encode_seconds=3),
            cache_hits=1,
        )

    def StreamLogits(  # noqa: N802  # the contract's name
        self, request: pb.StreamLogitsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamLogitsResponse]:
        self._enter("StreamLogits", context)
        payloads = self._payloads(request.request, context)
        sizes = [len(payload) for payload in payloads]
        header = pb.StreamHeader(payload_bytes=sizes, fingerprint=self.description.fingerprint)
        parts = [pb.StreamLogitsResponse(header=header)]
        for offset, data in split(payloads):
            parts.append(pb.StreamLogitsResponse(chunk=pb.StreamChunk(offset=offset, data=data)))
        parts.append(pb.StreamLogitsResponse(trailer=pb.StreamTrailer(cache_hits=1)))
        for index, part in enumerate(self.alter_stream(parts)):
            if index == self.break_off_after:
                self.break_off_after = None
                fail(TeacherUnavailableError("draining"))(context)
            yield part


def fail(error: TeacherError) -> Fault:
    """End a call as the service does when it raises `error`."""

    def fault(context: grpc.ServicerContext) -> None:
        status = status_of(error)
        context.set_trailing_metadata(status.trailing_metadata)
        context.abort(status.code, status.message)

    return fault


def end(code: grpc.StatusCode, details: str = "why") -> Fault:
    """End a call with a bare status, as a proxy might."""
    return lambda context: context.abort(code, details)


class Ask(Protocol):
    """Either client, waited for."""

    def __call__(self, request: LogitsRequest, **options: Any) -> Answer: ...


@pytest.fixture
def servicer() -> TableServicer:
    return TableServicer()


@pytest.fixture
def address(servicer: TableServicer) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        rpc.add_TeacherServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest, address: str) -> Ask:
    def ask_sync(request: LogitsRequest, **options: Any) -> Answer:
        with TeacherClient(address, **options) as client:
            return client.answer(request)

    def ask_asyncio(request: LogitsRequest, **options: Any) -> Answer:
        async def run() -> Answer:
            async with AsyncTeacherClient(address, **options) as client:
                return await client.answer(request)

        return asyncio.run(run())

    return ask_sync if request.param == "sync" else ask_asyncio


def about(*rows: tuple[int, ...], encoding: Encoding | None = None, **fields: Any) -> LogitsRequest:
    return LogitsRequest(tuple(Sequence(ids, (), All()) for ids in rows), encoding or Dense(), **fields)


SMALL = about((1, 2, 3))
# 6,000 positions of 200 bytes: more than a message, and more than one chunk.
LARGE = about(tuple(index % VOCABULARY_SIZE for index in range(6000)))


def test_an_answer_is_one_payload_for_each_sequence_in_order(ask: Ask, servicer: TableServicer) -> None:
    request = LogitsRequest(
        (Sequence((1, 2, 3)), Sequence((4, 5), (), All()), Sequence((6, 7, 8), (1, 2), From(1)),
         Sequence((9, 10, 11), (), Explicit((0, 2)))),
    )  # fmt: skip
    answer = ask(request)
    rows = [payload.logits for payload in answer.payloads if isinstance(payload, DenseLogits)]
    assert [row.tolist() for row in rows] == [TABLE[ids].tolist() for ids in ([3], [4, 5], [7, 8], [9, 11])]
    assert answer.fingerprint == DESCRIPTION.fingerprint
    assert (answer.queue_seconds, answer.compute_seconds, answer.encode_seconds, answer.cache_hits) == (1, 2, 3, 1)
    assert servicer.calls == ["GetTeacher", "ComputeLogits"]


@pytest.mark.parametrize("encoding", [Dense("bfloat16"), TopK(3), TopK(2, "float32"), Candidates((0, 7))], ids=repr)
def test_every_encoding_arrives_as_it_was_made(ask: Ask, encoding: Encoding) -> None:
    answer = ask(about((1, 2), encoding=encoding, temperature=2.0, vocabulary_size=40))
    expected = encode_logits([TABLE[[1, 2]]], encoding, temperature=2.0, vocabulary_size=40)
    assert encode_payload(answer.payloads[0]) == encode_payload(expected)


def test_a_large_answer_comes_as_a_stream(ask: Ask, servicer: TableServicer) -> None:
    answer = ask(LARGE)
    assert isinstance(answer.payloads[0], DenseLogits)
    assert answer.payloads[0].logits.equal(TABLE.repeat(120, 1))
    assert servicer.calls == ["GetTeacher", "StreamLogits"]


def test_an_empty_batch_asks_nothing_and_has_an_empty_answer(ask: Ask, servicer: TableServicer) -> None:
    assert ask(about()).payloads == ()
    assert servicer.calls == ["GetTeacher"]


def test_more_than_the_limits_is_asked_in_parts_and_answered_whole(ask: Ask, servicer: TableServicer) -> None:
    servicer.description = dataclasses.replace(DESCRIPTION, limits=Limits(max_sequences=3, max_request_tokens=7))
    rows = [(1, 2, 3), (4, 5, 6), (7,), (8,), (9,), (10, 11, 12, 13, 14), (15, 16)]
    answer = ask(about(*rows))
    assert [payload.logits.tolist() for payload in answer.payloads if isinstance(payload, DenseLogits)] == [
        TABLE[list(row)].tolist() for row in rows
    ]
    assert [[len(part.token_ids) for part in request.sequences] for request in servicer.requests] == [
        [3, 3, 1], [1, 1, 5], [2],
    ]  # fmt: skip
    assert (answer.queue_seconds, answer.compute_seconds, answer.cache_hits) == (1, 6, 3)


@pytest.mark.parametrize("error_class", [*ERROR_BY_GRPC_CODE.values(), VocabularyMismatchError])
def test_what_the_service_raises_the_client_raises(
    ask: Ask, servicer: TableServicer, error_class: type[TeacherError]
) -> None:
    for request in (SMALL, LARGE):
        servicer.faults = [lambda _: None, fail(error_class("sequences[0]: why"))]
        with pytest.raises(error_class, match=r"sequences\[0\]: why") as caught:
            ask(request, max_attempts=1)
        assert caught.type is error_class


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_bare_status_is_an_error_that_names_the_address(
    servicer: TableServicer, address: str, code: grpc.StatusCode
) -> None:
    servicer.faults = [end(code)]
    words = f"{address}: {code.name}: why"
    with TeacherClient(address, max_attempts=1) as client, pytest.raises(TeacherError, match=words) as caught:
        client.describe()
    expected = ERROR_BY_GRPC_CODE.get(code.name, TeacherInternalError)
    assert caught.type is (TeacherUnavailableError if code is grpc.StatusCode.CANCELLED else expected)


@pytest.mark.parametrize("large", [False, True])
def test_an_unavailable_teacher_is_asked_again(ask: Ask, servicer: TableServicer, large: bool) -> None:
    unavailable = fail(TeacherUnavailableError("loading"))
    servicer.faults = [unavailable, lambda _: None, unavailable, unavailable]
    assert len(ask(LARGE if large else SMALL).payloads) == 1
    assert len(servicer.calls) == 2 + 3


def test_asking_again_has_a_bound(ask: Ask, servicer: TableServicer) -> None:
    servicer.faults = [fail(TeacherUnavailableError("loading"))] * 50
    with pytest.raises(TeacherUnavailableError, match="loading"):
        ask(SMALL, max_attempts=3)
    assert servicer.calls == ["GetTeacher"] * 3


def test_an_overloaded_teacher_is_asked_again_when_it_said(ask: Ask, servicer: TableServicer) -> None:
    servicer.faults = [lambda _: None, fail(OverloadedError("full", retry_after_seconds=0.3))]
    start = time.monotonic()
    assert len(ask(SMALL).payloads) == 1
    assert time.monotonic() - start >= 0.3
    assert servicer.calls == ["GetTeacher", "ComputeLogits", "ComputeLogits"]


def test_an_overload_that_names_no_time_is_not_asked_again(ask: Ask, servicer: TableServicer) -> None:
    servicer.faults = [end(grpc.StatusCode.RESOURCE_EXHAUSTED)]
    with pytest.raises(OverloadedError):
        ask(SMALL)
    assert servicer.calls == ["GetTeacher"]


def test_what_asking_again_cannot_mend_is_asked_once(ask: Ask, servicer: TableServicer) -> None:
    servicer.faults = [fail(TeacherInternalError("broken"))]
    with pytest.raises(TeacherInternalError, match="broken"):
        ask(SMALL)
    assert servicer.calls == ["GetTeacher"]


def test_waiting_ends_at_the_deadline(ask: Ask, servicer: TableServicer) -> None:
    servicer.faults = [fail(TeacherUnavailableError("loading"))] * 1000
    start = time.monotonic()
    with pytest.raises(TeacherUnavailableError):
        ask(SMALL, timeout_seconds=0.7, max_attempts=1000)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("large", [False, True])
def test_a_call_has_a_deadline(ask: Ask, servicer: TableServicer, large: bool) -> None:
    release = threading.Event()
    servicer.faults = [lambda _: None, lambda _: cast("None", release.wait(20))]
    try:
        with pytest.raises(TeacherTimeoutError, match="DEADLINE_EXCEEDED"):
            ask(LARGE if large else SMALL, timeout_seconds=0.5)
    finally:
        release.set()


def test_nobody_at_the_address_is_unavailable() -> None:
    with (
        TeacherClient("127.0.0.1:1", max_attempts=2) as client,
        pytest.raises(TeacherUnavailableError, match=r"127\.0\.0\.1:1"),
    ):
        client.describe()


def test_the_teacher_is_described_once(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client:
        without = dataclasses.replace(DESCRIPTION, tokens=())
        assert client.describe() == client.describe() == without
        assert client.describe(include_tokens=True) == client.describe(include_tokens=True) == DESCRIPTION
    assert servicer.calls == ["GetTeacher"] * 2


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


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [dense_payload(3)] * 2,
        [dense_payload(2)],
        [dense_payload(3, VOCABULARY_SIZE - 1)],
        [dense_payload(3, dtype=torch.float16)],
        [encode_payload(encode_logits([TABLE[:3]], TopK(3), temperature=1.0, vocabulary_size=VOCABULARY_SIZE))],
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
    other = encode_logits([TABLE[:3]], given, temperature=1.0, vocabulary_size=VOCABULARY_SIZE)
    servicer.alter = lambda _: [encode_payload(other)]
    with pytest.raises(TeacherInternalError, match="asked for"):
        ask(about((0, 1, 2), encoding=asked))


def test_another_temperature_is_refused(ask: Ask, servicer: TableServicer) -> None:
    other = encode_logits([TABLE[:1]], TopK(3), temperature=2.0, vocabulary_size=VOCABULARY_SIZE)
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
    ask: Ask, servicer: TableServicer, alter: Callable[[Parts], Parts], message: str
) -> None:
    servicer.alter_stream = alter
    with pytest.raises(StreamError, match=message):
        ask(LARGE)


def test_a_stream_that_breaks_off_is_asked_anew(ask: Ask, servicer: TableServicer) -> None:
    servicer.break_off_after = 2
    assert len(ask(LARGE).payloads) == 1
    assert servicer.calls == ["GetTeacher", "StreamLogits", "StreamLogits"]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (about((VOCABULARY_SIZE,)), InvalidRequestError, r"sequences\[0\].token_ids must be below"),
        (about(*[(1,)] * 5, (1, 50)), InvalidRequestError, r"sequences\[5\].token_ids must be below"),
        (about((1,), encoding=TopK(51)), InvalidRequestError, "top_k.k"),
        (about((1,), vocabulary_size=51), InvalidRequestError, "vocabulary_size"),
        (about((1,), encoding=Hidden()), EncodingNotOfferedError, "Hidden"),
        (about((1,), encoding=Sampled()), EncodingNotOfferedError, "Sampled"),
        (about((1,) * 6001), RequestTooLongError, r"sequences\[0\].token_ids: 6001"),
    ],
)
def test_what_the_teacher_cannot_serve_is_refused_without_asking(
    ask: Ask, servicer: TableServicer, request_: LogitsRequest, error: type[TeacherError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(request_)
    assert servicer.calls == ["GetTeacher"]


def test_an_answer_that_would_fill_the_memory_is_refused_without_asking(ask: Ask, servicer: TableServicer) -> None:
    with pytest.raises(RequestTooLongError, match=r"1200048 bytes.*max_answer_bytes of 1000000"):
        ask(LARGE, max_answer_bytes=1_000_000)
    assert servicer.calls == ["GetTeacher"]


def test_a_message_over_the_channels_limit_is_too_long(address: str) -> None:
    with TeacherClient(address, max_message_bytes=3000) as client:
        assert client.answer(SMALL).payloads
        with pytest.raises(RequestTooLongError, match="larger than max"):
            client.answer(about(tuple(range(50))))


def test_the_token_goes_with_every_call_and_into_no_text(ask: Ask, servicer: TableServicer, address: str) -> None:
    ask(SMALL, token="s3cret")
    assert servicer.metadata["authorization"] == "Bearer s3cret"
    ask(LARGE)
    assert "authorization" not in servicer.metadata
    with TeacherClient(address, token="s3cret") as client:
        assert repr(client) == f"TeacherClient('{address}')"


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 2, 3], [4]],
        [np.array([1, 2, 3], dtype=np.uint32), np.array([4])],
        [torch.tensor([1, 2, 3]), torch.tensor([4], dtype=torch.int32)],
        [np.array([1, 2, 3]).tolist(), [np.int64(4)]],
    ],
    ids=["lists", "arrays", "tensors", "numbers"],
)
def test_ids_may_be_lists_arrays_or_tensors(address: str, ids: Any) -> None:
    with TeacherClient(address) as client:
        payloads = client.logits(ids, encoding=TopK(2), positions=Last())
    assert [payload.token_ids.shape for payload in payloads if isinstance(payload, TopKLogits)] == [(1, 2), (1, 2)]


def test_a_tensor_is_a_batch_of_its_rows(address: str) -> None:
    batch = torch.tensor([[1, 2], [3, 4]])

    async def run() -> tuple[Payload, ...]:
        async with AsyncTeacherClient(address) as client:
            return await client.logits(batch)

    with TeacherClient(address) as client:
        answers = client.logits(batch), asyncio.run(run())
    for payloads in answers:
        assert [p.logits.tolist() for p in payloads if isinstance(p, DenseLogits)] == [
            TABLE[[1, 2]].tolist(), TABLE[[3, 4]].tolist(),
        ]  # fmt: skip


@pytest.mark.parametrize("ids", [torch.tensor([[1.5, 2.0]]), [["1"]], torch.tensor([[[1]]])], ids=str)
def test_what_is_no_row_of_integers_is_refused(address: str, ids: Any) -> None:
    with TeacherClient(address) as client, pytest.raises((InvalidRequestError, TypeError)):
        client.logits(ids)


def test_several_threads_may_share_a_client(address: str) -> None:
    with TeacherClient(address) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda token: client.logits([[token]]), range(20)))
    for token, (payload,) in enumerate(answers):
        assert isinstance(payload, DenseLogits)
        assert payload.logits.equal(TABLE[[token]])


@pytest.mark.parametrize("address_", ["", "localhost", "http://host:8001", "host:"])
@pytest.mark.parametrize("kind", [TeacherClient, AsyncTeacherClient])
def test_an_address_that_grpc_would_misread_is_refused(address_: str, kind: type[TeacherClient]) -> None:
    with pytest.raises(ConfigurationError, match="address must be host:port"):
        kind(address_)


@pytest.mark.parametrize("option", ["timeout_seconds", "max_attempts", "max_answer_bytes", "max_message_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_every_bound_is_positive_and_finite(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=option):
        TeacherClient("host:1", **{option: value})  # type: ignore[arg-type]  # any of the bounds
