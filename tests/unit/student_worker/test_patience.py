"""Waiting for a teacher: what waiting may mend is waited for, within bounds, and nothing else is."""

from __future__ import annotations

import threading

import pytest
import structlog

from stillhouse.errors import (
    FingerprintMismatchError,
    GuardError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    TeacherError,
    TeacherInternalError,
    TeacherUnavailableError,
    UnauthenticatedError,
)
from stillhouse.fixtures import FixtureTeacher
from student_worker.patience import Interrupted, PatientTeacher, TeacherAwayError


class Asked:
    """Raises what it is given, one after another, then answers 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times = 0

    def __call__(self) -> int:
        self.times += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def patient(wait_seconds: float = 5.0, stopping: threading.Event | None = None) -> PatientTeacher:
    return PatientTeacher(FixtureTeacher(3), wait_seconds, stopping or threading.Event())


def test_a_teacher_that_comes_back_is_asked_again_and_each_wait_is_told_once() -> None:
    ask = Asked(TeacherUnavailableError("away"), TeacherInternalError("broken"), OverloadedError("full", 0.01))
    with structlog.testing.capture_logs() as lines:
        assert patient().call(ask) == 7
    assert ask.times == 4
    told = [(line["event"], line["attempt"], line["reason"]) for line in lines]
    assert told == [
        ("waiting_for_teacher", number, words) for number, words in ((1, "away"), (2, "broken"), (3, "full"))
    ]
    assert all(line["next_attempt_in_seconds"] >= 0 and line["gives_up_after_seconds"] == 5.0 for line in lines)


def test_patience_ends_with_the_reason_and_the_key_that_sets_it() -> None:
    ask = Asked(*(TeacherUnavailableError("gone fishing") for _ in range(50)))
    with pytest.raises(TeacherAwayError, match=r"teacher_wait_seconds, 0.3 s: gone fishing"):
        patient(0.3).call(ask)
    assert ask.times > 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("no"),
        UnauthenticatedError("which token?"),
        PermissionDeniedError("not with this token"),
        OverloadedError("never", float("inf")),
    ],
)
def test_what_waiting_cannot_mend_is_raised_at_once(error: TeacherError) -> None:
    ask = Asked(error)
    with pytest.raises(type(error)) as raised:
        patient().call(ask)
    assert raised.value is error
    assert ask.times == 1


def test_a_full_queue_is_given_the_time_that_it_asks_for() -> None:
    with structlog.testing.capture_logs() as lines:
        patient().call(Asked(OverloadedError("full", 0.25)))
    assert lines[0]["next_attempt_in_seconds"] >= 0.2


def test_another_teacher_stops_the_run() -> None:
    with pytest.raises(GuardError, match="changed"):
        patient().call(Asked(FingerprintMismatchError("other weights")))


def test_a_run_that_is_to_stop_waits_for_nobody() -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Interrupted):
        patient(stopping=stopping).call(Asked(TeacherUnavailableError("away")))
