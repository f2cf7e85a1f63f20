"""What the client raises, and how often it tries."""

from __future__ import annotations

import threading
import time
from typing import cast

import grpc
import pytest

from stillhouse.client import TeacherClient
from stillhouse.errors import (
    ERROR_BY_GRPC_CODE,
    OverloadedError,
    RequestTooLongError,
    TeacherError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
    VocabularyMismatchError,
)
from tests.integration.client.table_teacher import (
    LARGE,
    SMALL,
    Ask,
    TableServicer,
    end,
    fail,
    serving,
)


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
        with pytest.raises(TeacherTimeoutError, match=r"DEADLINE_EXCEEDED|no answer within 0\.\d s"):
            ask(LARGE if large else SMALL, timeout_seconds=0.5)
    finally:
        release.set()


def test_nobody_at_the_address_is_unavailable() -> None:
    with (
        TeacherClient("127.0.0.1:1", max_attempts=2) as client,
        pytest.raises(TeacherUnavailableError, match=r"127\.0\.0\.1:1"),
    ):
        client.describe()


def test_a_stream_that_breaks_off_is_asked_anew(ask_grpc: Ask, servicer: TableServicer) -> None:
    servicer.break_off_after = 2
    assert len(ask_grpc(LARGE).payloads) == 1
    assert servicer.calls == ["GetTeacher", "StreamLogits", "StreamLogits"]


def test_a_message_over_the_channels_limit_is_too_long() -> None:
    with (
        serving(TableServicer(), ("grpc.max_receive_message_length", 3000)) as address,
        TeacherClient(address) as client,
    ):
        assert client.answer(SMALL).payloads
        with pytest.raises(RequestTooLongError, match="larger than max"):
            client.answer(LARGE)
