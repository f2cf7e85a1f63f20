"""Requests are bounded in tokens, number and bytes, and what has been answered is handed out whatever comes after."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stillhouse.asking import Asking
from stillhouse.capture.asking_ahead import Bounds, Question, answers, questions
from stillhouse.data import PackedDataset
from stillhouse.encodings import Dense, Encoding, Sampled
from stillhouse.errors import TeacherInternalError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from tests.unit.store.small_store import BLOCK_SIZE, VOCABULARY, small_corpus

TEACHER = FixtureTeacher(VOCABULARY)
LOOSE = Bounds(max_request_tokens=64, max_requests=3, max_bytes=2**30)


@pytest.fixture
def train(tmp_path: Path) -> PackedDataset:
    return small_corpus(tmp_path)[0].train


def asking(encoding: Encoding | None = None) -> Asking:
    return Asking(encoding or Sampled(8), 1.0, VOCABULARY, TEACHER.describe().fingerprint)


def asked(train: PackedDataset, bounds: Bounds = LOOSE, encoding: Encoding | None = None) -> list[Question]:
    return list(questions(train, range(len(train)), asking(encoding), TEACHER.describe(), bounds))


def nothing() -> None:
    return


def test_every_sample_is_asked_about_once_in_order_within_the_tokens_of_a_request(train: PackedDataset) -> None:
    made = asked(train)
    assert [index for question in made for index in question.indices] == list(range(len(train)))
    assert all(question.num_tokens <= 64 for question in made)
    assert len(made[0].indices) == 64 // BLOCK_SIZE


def test_a_sample_over_the_bound_goes_alone(train: PackedDataset) -> None:
    made = asked(train, Bounds(max_request_tokens=BLOCK_SIZE - 1, max_requests=1, max_bytes=1))
    assert [question.indices for question in made] == [(index,) for index in range(len(train))]


def test_the_bytes_of_a_request_are_a_share_of_those_that_may_be_held(train: PackedDataset) -> None:
    row = VOCABULARY * 4
    bounds = Bounds(max_request_tokens=10**6, max_requests=4, max_bytes=4 * (2 * BLOCK_SIZE * row + 1000))
    made = asked(train, bounds, Dense("float32"))
    assert all(question.num_bytes <= bounds.max_bytes // 4 for question in made)
    assert max(len(question.indices) for question in made) == 2


def test_masked_positions_are_not_asked_about(train: PackedDataset) -> None:
    made = asked(train)
    for question in made:
        for sample, sequence in zip(question.samples, question.request.sequences, strict=True):
            assert sequence.num_positions == int(sample.mask.sum())
            assert list(sequence.position_indices()) == sample.mask.nonzero()[0].tolist()


def test_answers_are_those_to_their_questions(train: PackedDataset) -> None:
    got = {question.indices: answer for question, answer in answers(iter(asked(train)), TEACHER.answer, LOOSE, nothing)}
    for question in asked(train):
        expected = TEACHER.answer(question.request).payloads
        for one, other in zip(got[question.indices].payloads, expected, strict=True):
            assert repr(one) == repr(other)


class Gate:
    """A teacher that answers nobody until it is let go, and counts who waits."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.most = 0
        self._waiting = 0
        self._mutex = threading.Lock()

    def answer(self, request: LogitsRequest) -> Answer:
        with self._mutex:
            self._waiting += 1
            self.most = max(self.most, self._waiting)
        self.open.wait(10)
        with self._mutex:
            self._waiting -= 1
        return TEACHER.answer(request)


@pytest.mark.parametrize(("bounds", "most"), [(LOOSE, 3), (Bounds(64, 3, 1), 1)])
def test_no_more_are_in_flight_than_the_bounds_let(train: PackedDataset, bounds: Bounds, most: int) -> None:
    gate = Gate()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if gate.most == most or looks > 50:
            gate.open.set()

    made = asked(train)
    assert len(list(answers(iter(made), gate.answer, bounds, look))) == len(made)
    assert gate.most == most


def test_questions_are_made_only_when_there_is_room_for_their_answers(train: PackedDataset) -> None:
    taken = 0

    def counting() -> object:
        nonlocal taken
        for question in asked(train):
            taken += 1
            yield question

    got = answers(counting(), TEACHER.answer, Bounds(64, 2, 2**30), nothing)  # type: ignore[arg-type]  # an iterator
    next(got)
    assert taken <= 2 + 1
    got.close()  # type: ignore[attr-defined]  # a generator


def test_what_was_answered_is_handed_out_before_an_error_is_raised(train: PackedDataset) -> None:
    made = asked(train)
    assert len(made) > 3
    all_in = threading.Barrier(3)

    def ask(request: LogitsRequest) -> Answer:
        all_in.wait(10)
        if request is made[0].request:
            raise TeacherInternalError("it broke")
        return TEACHER.answer(request)

    got: list[Question] = []

    def settle() -> None:
        threading.Event().wait(0.2)  # all three are done when they are looked at

    with pytest.raises(TeacherInternalError, match="it broke"):
        got.extend(question for question, _ in answers(iter(made), ask, LOOSE, settle))
    assert {question.indices for question in got} == {question.indices for question in made[1:3]}


def test_a_look_that_raises_ends_the_wait() -> None:
    gate = Gate()

    def look() -> None:
        raise KeyboardInterrupt

    request = LogitsRequest(())
    with pytest.raises(KeyboardInterrupt):
        list(answers(iter([Question("train", (), (), request, 0)]), gate.answer, LOOSE, look))
    gate.open.set()
