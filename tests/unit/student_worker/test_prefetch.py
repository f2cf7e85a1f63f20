"""Answers ahead of the step: bounded, in order, patient, and never another teacher's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import structlog
import torch

from stillhouse.errors import TeacherTimeoutError
from stillhouse.payloads import DenseLogits
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from student_worker.patience import Interrupted, PatientTeacher, TeacherAwayError
from student_worker.prefetch import Key, Piece, Prefetcher


class SlowTeacher(TeacherLogitsProvider):
    """Answers with the first token id as its only logit, once `gate` is open; fails as often as it is told."""

    def __init__(self, errors: tuple[Exception, ...] = ()) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[int] = []
        self._errors = list(errors)
        self._lock = threading.Lock()

    def describe(self) -> TeacherDescription:
        raise AssertionError("not asked here")

    def answer(self, request: LogitsRequest) -> Answer:
        first = request.sequences[0].token_ids[0]
        with self._lock:
            self.asked.append(first)
            if self._errors:
                raise self._errors.pop(0)
        assert self.gate.wait(10)
        return Answer((DenseLogits(torch.full((1, 1), float(first))),), "f", num_bytes=8)


def piece(key: Key) -> Piece:
    return Piece(LogitsRequest((Sequence((10 * key[0] + key[1],)),)), num_bytes=100)


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def make(stopping: threading.Event) -> Iterator[Callable[..., Prefetcher]]:
    made: list[Prefetcher] = []

    def prefetcher(teacher: TeacherLogitsProvider, max_bytes: int = 1000, wait_seconds: float = 5.0) -> Prefetcher:
        made.append(
            Prefetcher(PatientTeacher(teacher, wait_seconds, stopping), piece, max_bytes=max_bytes, stopping=stopping)
        )
        return made[-1]

    yield prefetcher
    stopping.set()
    for each in made:
        each.close()


def value(payloads: object) -> float:
    assert isinstance(payloads, tuple)
    return float(payloads[0].logits)


def test_each_micro_shard_gets_its_own_answer_whatever_the_order(make: Callable[..., Prefetcher]) -> None:
    prefetcher = make(SlowTeacher())
    keys = [(step, shard) for step in range(2) for shard in range(4)]
    prefetcher.plan(keys, 0)
    assert [value(prefetcher.take(key)) for key in reversed(keys)] == [13, 12, 11, 10, 3, 2, 1, 0]


def test_no_more_is_asked_ahead_than_fits_the_bound(make: Callable[..., Prefetcher]) -> None:
    teacher = SlowTeacher()
    prefetcher = make(teacher, max_bytes=350)
    prefetcher.plan([(step, shard) for step in range(4) for shard in range(2)], 0)
    assert prefetcher.held_bytes == 300
    prefetcher.wait([(0, 0), (0, 1)])
    assert prefetcher.held_bytes == 300
    prefetcher.take((0, 0))
    assert prefetcher.held_bytes == 300, "room was made, so the next one is fetched"
    prefetcher.take((0, 1))
    prefetcher.wait([(1, 0), (1, 1)])
    assert set(teacher.asked) <= {0, 1, 10, 11, 20}


def test_the_current_step_is_fetched_whatever_its_size(make: Callable[..., Prefetcher]) -> None:
    prefetcher = make(SlowTeacher(), max_bytes=0)
    prefetcher.plan([(0, 0), (0, 1), (1, 0)], 0)
    assert prefetcher.held_bytes == 200
    assert value(prefetcher.take((0, 1))) == 1


def test_answers_that_are_no_longer_needed_are_dropped_and_those_needed_are_kept(
    make: Callable[..., Prefetcher],
) -> None:
    teacher = SlowTeacher()
    prefetcher = make(teacher)
    prefetcher.plan([(0, shard) for shard in range(4)], 0)
    prefetcher.wait([(0, shard) for shard in range(4)])
    prefetcher.plan([(0, 2), (0, 3), (1, 2)], 0)
    assert prefetcher.held_bytes == 300
    prefetcher.wait([(0, 2), (0, 3), (1, 2)])
    assert sorted(teacher.asked) == [0, 1, 2, 3, 12]


def test_a_micro_shard_without_rows_asks_nobody(stopping: threading.Event) -> None:
    teacher = SlowTeacher()
    prefetcher = Prefetcher(
        PatientTeacher(teacher, 1.0, stopping), lambda _: Piece(None, 0), max_bytes=0, stopping=stopping
    )
    assert prefetcher.take((0, 0)) == ()
    assert teacher.asked == []
    prefetcher.close()


def test_a_wait_ends_when_the_run_is_to_stop(make: Callable[..., Prefetcher], stopping: threading.Event) -> None:
    teacher = SlowTeacher()
    teacher.gate.clear()
    prefetcher = make(teacher)
    threading.Timer(0.05, stopping.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        prefetcher.take((0, 0))
    assert time.monotonic() - began < 5
    assert prefetcher.wait_seconds > 0
    teacher.gate.set()


def test_waits_and_what_is_held_are_told_while_they_last(make: Callable[..., Prefetcher]) -> None:
    teacher = SlowTeacher()
    teacher.gate.clear()
    prefetcher = make(teacher)
    waits: list[float] = []

    def count(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:  # told of more than once before the answer was here
            assert prefetcher.num_held == 2
            teacher.gate.set()

    prefetcher.on_wait = count
    prefetcher.plan([(0, 0), (0, 1)], 0)
    prefetcher.take((0, 0))
    assert len(waits) >= 2
    assert sum(waits) == pytest.approx(prefetcher.wait_seconds)
    prefetcher.take((0, 1))
    assert (prefetcher.num_held, prefetcher.received_bytes) == (0, 16)


def test_a_slow_answer_is_told_of_in_the_log(make: Callable[..., Prefetcher], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student_worker.prefetch.SLOW_SECONDS", 0.01)
    teacher = SlowTeacher()
    teacher.gate.clear()
    prefetcher = make(teacher)
    with structlog.testing.capture_logs() as lines:
        prefetcher.on_wait = lambda _: teacher.gate.set() if len(lines) >= 2 else None
        prefetcher.take((4, 1))
    slow = [line for line in lines if line["event"] == "teacher_is_slow"]
    assert [(line["step"], line["micro_shard"]) for line in slow][:2] == [(5, 1)] * 2
    assert slow[1]["waited_seconds"] >= slow[0]["waited_seconds"]


def test_a_teachers_own_timeout_is_an_answer_and_no_reason_to_poll_on(make: Callable[..., Prefetcher]) -> None:
    teacher = SlowTeacher(tuple(TeacherTimeoutError("too slow") for _ in range(50)))
    with pytest.raises(TeacherAwayError, match="too slow"):
        make(teacher, wait_seconds=0.1).take((0, 0))


def test_an_answer_in_flight_for_others_is_let_go_and_its_place_is_taken(make: Callable[..., Prefetcher]) -> None:
    teacher = SlowTeacher()
    teacher.gate.clear()
    prefetcher = make(teacher)
    prefetcher.plan([(0, shard) for shard in range(4)], 0)
    while len(teacher.asked) < 4:
        time.sleep(0.001)
    # Two workers more: only one shard stays ours. What was asked for the others is on its way to the teacher's cache.
    prefetcher.plan([(0, 3), (1, 3)], 0)
    assert prefetcher.num_held == 2
    teacher.gate.set()
    assert value(prefetcher.take((0, 3))) == 3
    assert value(prefetcher.take((1, 3))) == 13
    assert sorted(teacher.asked) == [0, 1, 2, 3, 13], "nothing that is still needed was asked for twice"
