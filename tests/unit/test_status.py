"""The client raises the class that the service raised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from stillhouse.errors import (
    ERROR_BY_GRPC_CODE,
    CodecError,
    OverloadedError,
    RequestTooLongError,
    TeacherError,
    TeacherInternalError,
    TeacherUnavailableError,
    VocabularyMismatchError,
)
from stillhouse.status import ERROR_TRAILER, PUSHBACK_TRAILER, error_of, status_of

CLASSES = [*ERROR_BY_GRPC_CODE.values(), VocabularyMismatchError]


@dataclass
class Call:
    """A failed call, as grpc hands one out."""

    status: grpc.StatusCode | None
    message: str | None = "why"
    trailers: tuple[tuple[str, str | bytes], ...] | None = ()

    def code(self) -> grpc.StatusCode | None:
        return self.status

    def details(self) -> str | None:
        return self.message

    def trailing_metadata(self) -> Iterator[tuple[str, str | bytes]] | None:
        return None if self.trailers is None else iter(self.trailers)


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_error_arrives_as_itself_with_its_words(error_class: type[TeacherError]) -> None:
    status = status_of(error_class("sequences[0] is wrong"))
    error = error_of(Call(status.code, status.message, status.trailing_metadata), "host:1")
    assert type(error) is error_class
    assert str(error) == "sequences[0] is wrong"


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_without_a_trailer_has_a_class(code: grpc.StatusCode) -> None:
    error = error_of(Call(code), "host:1")
    expected = ERROR_BY_GRPC_CODE.get(code.name, TeacherInternalError)
    assert type(error) is (TeacherUnavailableError if code is grpc.StatusCode.CANCELLED else expected)
    assert str(error) == f"teacher host:1: {code.name}: why"


def test_when_to_come_again_survives() -> None:
    status = status_of(OverloadedError("full", retry_after_seconds=0.25))
    assert (PUSHBACK_TRAILER, "250") in status.trailing_metadata
    error = error_of(Call(status.code, status.message, status.trailing_metadata), "host:1")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_seconds == 0.25


@pytest.mark.parametrize("pushback", [(), ((PUSHBACK_TRAILER, "-1"),), ((PUSHBACK_TRAILER, "soon"),)])
def test_without_a_time_to_come_again_there_is_none(pushback: tuple[tuple[str, str], ...]) -> None:
    error = error_of(Call(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=pushback), "host:1")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_seconds == math.inf


def test_a_message_over_grpcs_own_limit_is_too_long_not_an_overload() -> None:
    call = Call(grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (5 vs. 4)")
    assert type(error_of(call, "host:1")) is RequestTooLongError


@pytest.mark.parametrize("fault", [CodecError("secret detail"), ValueError("secret detail"), KeyError("secret")])
def test_an_unforeseen_fault_says_nothing_of_itself(fault: Exception) -> None:
    status = status_of(fault)
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.message


@pytest.mark.parametrize("name", ["KeyError", "OverloadedError", "TeacherError", ""])
def test_a_trailer_that_does_not_go_with_its_code_is_not_believed(name: str) -> None:
    error = error_of(Call(grpc.StatusCode.INVALID_ARGUMENT, trailers=((ERROR_TRAILER, name),)), "host:1")
    assert type(error) is ERROR_BY_GRPC_CODE["INVALID_ARGUMENT"]


def test_a_call_that_says_nothing_is_still_an_error() -> None:
    assert type(error_of(Call(None, None, None), "host:1")) is TeacherInternalError


def test_a_long_message_fits_its_header() -> None:
    assert len(status_of(TeacherInternalError("x" * 100_000)).message) <= 2000
