"""An error crosses the hop as it is: the same class, words and pause, and nothing of what is a fault of ours."""

from __future__ import annotations

import json

import pytest

from stillhouse.errors import TEACHER_ERROR_BY_NAME, OverloadedError, TeacherError, TeacherInternalError
from stillhouse.status import status_of
from teacher_service.fronts.faults import read_error, tell_error


@pytest.mark.parametrize("kind", TEACHER_ERROR_BY_NAME.values())
def test_a_caller_gets_the_status_of_one_process(kind: type[TeacherError]) -> None:
    error = kind("sequences[0]: why") if kind is not OverloadedError else OverloadedError("full", 0.123)
    crossed = read_error(json.loads(json.dumps(tell_error(error))))
    assert type(crossed) is kind
    assert status_of(crossed) == status_of(error)


@pytest.mark.parametrize("error", [ValueError("/a/secret/folder"), KeyError("x")])
def test_of_a_fault_of_ours_nothing_is_told(error: Exception) -> None:
    crossed = read_error(tell_error(error))
    assert type(crossed) is TeacherInternalError
    assert status_of(crossed) == status_of(error)


def test_an_error_that_is_not_known_is_an_internal_one() -> None:
    assert type(read_error({"error": "SystemExit", "message": "?"})) is TeacherInternalError
    assert type(read_error({})) is TeacherInternalError
