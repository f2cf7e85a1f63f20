"""What is refused over HTTP is raised as the service meant it, and as best it can be where something else answered."""

from __future__ import annotations

import json
import math

import pytest

from stillhouse.errors import (
    TEACHER_ERROR_BY_NAME,
    OverloadedError,
    PermissionDeniedError,
    TeacherError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
)
from stillhouse.refusals import error_of_refusal
from teacher_service.http_door.problems import problem_of


@pytest.mark.parametrize("error_class", TEACHER_ERROR_BY_NAME.values())
def test_what_the_service_says_is_raised_again(error_class: type[TeacherError]) -> None:
    response = problem_of(error_class("sequences[0]: why"))
    given = response.headers.get("retry-after")
    error = error_of_refusal(response.status_code, given, bytes(response.body), "http://gpu0:8000")
    assert type(error) is error_class
    assert str(error) == "sequences[0]: why"


@pytest.mark.parametrize("seconds", [0.05, 0.25, 3.0, 12.5])
def test_when_to_come_again_is_told_to_the_millisecond(seconds: float) -> None:
    response = problem_of(OverloadedError("full", seconds))
    error = error_of_refusal(429, response.headers["retry-after"], bytes(response.body), "there")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_seconds == seconds
    assert int(response.headers["retry-after"]) >= seconds


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (502, TeacherUnavailableError), (503, TeacherUnavailableError), (504, TeacherTimeoutError),
        (408, TeacherTimeoutError), (403, PermissionDeniedError), (404, TeacherInternalError),
        (301, TeacherInternalError), (418, TeacherInternalError), (500, TeacherInternalError),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"\xff", b'{"detail": 7}', b'{"type": "urn:other"}', b"[" * 9999]
)
def test_what_a_proxy_says_names_the_address_and_the_status(
    status: int, expected: type[TeacherError], body: bytes
) -> None:
    error = error_of_refusal(status, None, body, "http://gpu0:8000")
    assert type(error) is expected
    assert f"teacher http://gpu0:8000: HTTP {status}" in str(error)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("7", 7.0), (None, math.inf), ("Wed, 21 Oct 2026 07:28:00 GMT", math.inf), ("9" * 99, math.inf)],
)
def test_an_overload_that_a_proxy_tells_of(given: str | None, seconds: float) -> None:
    error = error_of_refusal(429, given, b"slow down", "there")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("told", [-1, math.nan, math.inf, "soon", None])
def test_a_time_that_is_none_counts_for_nothing(told: object) -> None:
    body = json.dumps({"retry_after_seconds": told}).encode()
    error = error_of_refusal(429, "2", body, "there")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_seconds == 2


def test_a_class_under_another_status_is_not_believed() -> None:
    body = json.dumps({"type": "urn:stillhouse:error:UnauthenticatedError", "detail": "no"}).encode()
    assert type(error_of_refusal(500, None, body, "there")) is TeacherInternalError
