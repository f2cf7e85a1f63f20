"""A worker's health and metrics, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stillhouse.errors import ConfigurationError
from stillhouse.fixtures import FixtureTeacher
from student_worker.app import HttpServer, bind, build_app
from student_worker.callbacks import RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.metrics import WorkerMetrics
from student_worker.patience import PatientTeacher
from student_worker.prefetch import Piece, Prefetcher


class Readiness:
    ready = False

    def __call__(self) -> bool:
        return self.ready


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def server(metrics: WorkerMetrics, readiness: Readiness) -> Iterator[HttpServer]:
    server = HttpServer(build_app(metrics.registry, readiness), bind("127.0.0.1", 0))
    yield server
    server.close()


def test_a_worker_lives_before_it_is_ready(server: HttpServer, readiness: Readiness) -> None:
    assert httpx.get(f"{server.address}/livez").status_code == 200
    assert httpx.get(f"{server.address}/readyz").status_code == 503
    readiness.ready = True
    assert httpx.get(f"{server.address}/readyz").status_code == 200


def test_metrics_have_the_names_that_dashboards_use(server: HttpServer, metrics: WorkerMetrics) -> None:
    metrics.membership(2)
    run = RunView(Path(), "run", 1, 5, is_first=True)
    prefetcher = Prefetcher(
        PatientTeacher(FixtureTeacher(3), 1.0, threading.Event()),
        lambda _: Piece(None, 0),
        max_bytes=0,
        stopping=threading.Event(),
    )
    metrics.watch(prefetcher)
    assert prefetcher.on_wait is not None
    prefetcher.on_wait(0.125)
    prefetcher.plan([(0, 0), (0, 1)], 0)
    metrics.on_step_end(run, StepRecord(1, 1.5, 2.0, 1.0, 1e-3, 1.0, 512, 2048.0, 0.125, 0.25, 2, 640))
    metrics.on_evaluate(run, Evaluation(1.25, 0.5, 0.75, None, None, None, None, None, None, 7))
    metrics.healed()
    metrics.uncommitted()
    text = httpx.get(f"{server.address}/metrics").text
    for line in (
        "student_steps_total 1.0",
        "student_tokens_total 512.0",
        'student_loss{term="kl"} 1.0',
        'student_loss{term="cross_entropy"} 2.0',
        'student_loss{term="total"} 1.5',
        "student_step_duration_seconds_sum 0.25",
        "student_teacher_wait_seconds_total 0.125",
        "student_answer_bytes_total 640.0",
        "student_answers_held 2.0",
        "student_answers_held_bytes 0.0",
        "student_world_size 2.0",
        'student_evaluation{figure="agreement"} 0.75',
        "student_healed_total 1.0",
        "student_uncommitted_steps_total 1.0",
    ):
        assert line in text
    assert "student_checkpoint_age_seconds" in text


def test_a_taken_port_gives_way_to_the_next(server: HttpServer) -> None:
    taken = int(server.address.rpartition(":")[2])
    with bind("127.0.0.1", taken) as listener:
        assert listener.getsockname()[1] > taken


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"http_host '203\.0\.113\.7'"):
        bind("203.0.113.7", 0)
