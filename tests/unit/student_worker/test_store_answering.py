"""Who answers a run: how answers are counted by their source, and a store that goes on while its teacher is away."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest

from stillhouse.asking import Asking
from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Sampled
from stillhouse.errors import StoreError
from stillhouse.patience import TeacherAwayError
from stillhouse.providers import Answer
from student_worker.answering import Answering
from student_worker.metrics import WorkerMetrics
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.receipt import Receipt
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, make_store, small_corpus

Corpus = tuple[Prepared, DataSpec]
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def recipe(folder: Path, **keys: Any) -> Recipe:
    values = {"store": str(folder / "store"), "output_dir": str(folder / "run"), "student": {"kind": "fixture"}, **keys}
    return Recipe.model_validate(values)


def test_answers_are_counted_by_where_they_came_from(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus, Sampled(8), teacher=RandomTeacher(VOCABULARY))
    metrics = WorkerMetrics()
    train = corpus[0].train
    asking = Asking(Sampled(8), 1.0, VOCABULARY, "random 0")
    with Answering(recipe(tmp_path), threading.Event()) as answering:
        answering.on_answer = metrics.answered
        assert answering.describe().fingerprint == "random 0"
        for ids in ([1, 2, 3], [30]):
            answering.answer(asking.request([train[i] for i in ids], [("train", i) for i in ids]))
        assert answering.counts() == {"store": 4, "teacher": 0}
    metrics.answered(Answer(RandomTeacher(VOCABULARY).answer(asking.request([train[0], train[1]])).payloads, "f"))
    shown = generate_latest(metrics.registry).decode()
    assert 'student_answers_total{source="store"} 4.0' in shown
    assert 'student_answers_total{source="teacher"} 2.0' in shown


def test_a_whole_store_goes_on_while_its_teacher_is_away(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus, Sampled(8), teacher=RandomTeacher(VOCABULARY))
    beside = {"teacher": NOBODY, "teacher_wait_seconds": 0, "request_timeout_seconds": 2}
    train = corpus[0].train
    asking = Asking(Sampled(8), 1.0, VOCABULARY, "random 0")
    with Answering(recipe(tmp_path, **beside), threading.Event()) as answering:
        with structlog.testing.capture_logs() as logs:
            assert answering.describe().fingerprint == "random 0"
        assert [log["event"] for log in logs] == ["teacher_is_away"]
        assert answering.answer(asking.request([train[5]], [("train", 5)])).store_hits == 1
        with pytest.raises(TeacherAwayError, match=NOBODY):
            answering.answer(asking.request([train[5]], [("train", 6)]))
    # Another held-out encoding is the teacher's alone: it is waited for.
    needs_it = recipe(tmp_path, **beside, eval_encoding="hidden")
    with Answering(needs_it, threading.Event()) as answering, pytest.raises(TeacherAwayError, match=NOBODY):
        answering.describe()


def test_a_store_that_is_none_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        Answering(recipe(tmp_path), threading.Event())
    (tmp_path / "store").mkdir()
    with pytest.raises(StoreError, match="is no store"):
        Answering(recipe(tmp_path), threading.Event())


class State:
    step, num_tokens = 0, 0


def test_the_receipt_adds_up_over_starts(tmp_path: Path) -> None:
    counts = {"store": 3, "teacher": 1}

    def answers() -> dict[str, int]:
        return json.loads((tmp_path / "receipt.json").read_text())["answers"]  # type: ignore[no-any-return]

    state: Any = State()
    facts = {"recipe": "r", "data": "d", "teacher": "t", "seed": 1}
    first = Receipt(tmp_path, facts, state, "loss", dict, lambda: dict(counts))
    first.begin()
    assert answers() == counts
    second = Receipt(tmp_path, facts, state, "loss", dict, lambda: {"store": 10, "teacher": 0})
    second.begin()
    assert answers() == {"store": 13, "teacher": 1}
    # The first writes again, with what it has had since: nothing is counted twice.
    counts["store"] = 5
    first.close("done")
    assert answers() == {"store": 15, "teacher": 1}
