"""A worker's live page over real HTTP: what it shows, who gets in, and that it costs the run next to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from stillhouse.data import Sample
from student_worker.app import HttpServer, bind, build_app
from student_worker.callbacks.base import RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.metrics import WorkerMetrics
from student_worker.page.history import MOST_POINTS, RunHistory
from student_worker.page.page import RunPage
from student_worker.page.voice import Voice, decoder_of
from student_worker.recipe.schema import Recipe
from student_worker.students.fixture import FixtureTrainee

TOKEN = "right-token-0123456789"


def record(step: int, loss: float = 1.5, world_size: int = 2) -> StepRecord:
    return StepRecord(step, loss, 2.0, 1.0, 1e-3, 1.0, 512, 2048.0, 0.125, 0.25, world_size, 640)


def sample(length: int = 30) -> Sample:
    ids = np.arange(1, length + 1, dtype=np.uint32)
    return Sample(ids, ids.astype(np.int64), ids > 0, ())


def page_of(folder: Path, metrics: WorkerMetrics) -> RunPage:
    recipe = {
        "teacher": "127.0.0.1:8001",
        "output_dir": folder,
        "data": {"sources": ["a.txt"]},
        "student": {"kind": "fixture", "vocabulary_size": 64},
        "max_steps": 5,
    }
    return RunPage(Recipe.model_validate(recipe), metrics, lambda: False)


@pytest.fixture
def view(tmp_path: Path) -> RunView:
    return RunView(tmp_path, "run", 1, 5, is_first=True)


@pytest.fixture(params=[None, TOKEN], ids=["open", "with a token"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HttpServer]:
    metrics = WorkerMetrics()
    page = page_of(tmp_path, metrics)
    server = HttpServer(build_app(metrics.registry, lambda: True, page, request.param), bind("127.0.0.1", 0))
    yield server
    server.close()


def test_with_a_token_all_but_health_asks_for_it(server: HttpServer, request: pytest.FixtureRequest) -> None:
    is_open = "open" in request.node.name
    with httpx.Client(base_url=server.address) as http:
        for path in ("/livez", "/readyz", "/page/static/page.css", "/page/static/page.js"):
            assert http.get(path).status_code == 200
        for path in ("/", "/metrics", "/page/live"):
            assert http.get(path).status_code == (200 if is_open else 401), path
        assert http.get("/nothing").status_code == (404 if is_open else 401)
        with_token = {"authorization": f"Bearer {TOKEN}"}
        assert http.get("/metrics", headers=with_token).status_code == 200
        wrong = {"authorization": "Bearer wrong-token-0123456789"}
        assert http.get("/metrics", headers=wrong).status_code == (200 if is_open else 401)
        assert http.post("/page/enter", data={"token": "wrong"}).status_code == (303 if is_open else 401)
        entered = http.post("/page/enter", data={"token": TOKEN})
        assert entered.status_code == 303
        if not is_open:
            assert "HttpOnly; SameSite=Strict" in entered.headers["set-cookie"]
            assert TOKEN not in entered.headers["set-cookie"]
        assert http.get("/").status_code == 200
        # A pass opens the page alone.
        assert http.get("/metrics").status_code == (200 if is_open else 401)
        for bad in ({"sec-fetch-site": "cross-site"}, {"origin": "https://elsewhere.example"}):
            assert http.post("/page/voice", data={"now": "1"}, headers=bad).status_code == 403
        assert http.post("/page/enter", data={"token": "x" * 9000}).status_code == 413
        assert "unsafe" not in http.get("/").headers["content-security-policy"]


def test_the_page_shows_a_run_that_was_resumed(tmp_path: Path, view: RunView) -> None:
    metrics = WorkerMetrics()
    page = page_of(tmp_path, metrics)
    lines = [
        {"event": "step", "step": 1, "loss": 9.25, "kl": None, "world_size": 1, "step_seconds": 1.0},
        {"event": "evaluation", "step": 1, "loss": 8.5, "kl": 8.25, "agreement": 0.125},
        {"event": "step", "step": 2, "loss": 7.0, "kl": None, "world_size": 1, "step_seconds": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "worker-0.json").write_text('{"http": "http://127.0.0.1:8010", "facts": {"device": "cpu"}}')
    (tmp_path / "worker-1.json").write_text('{"http": "half')
    for watcher in page.watch(FixtureTrainee(64), lambda: [sample()], {"Teacher": "<smol>"}):
        watcher.on_train_begin(view)
        watcher.on_step_end(view, record(2, world_size=3))
    server = HttpServer(build_app(metrics.registry, lambda: True, page), bind("127.0.0.1", 0))
    try:
        text = httpx.get(f"{server.address}/").text
    finally:
        server.close()
    for shown in ("Step 1 of 5", "8.250", "&lt;smol&gt;", "http://127.0.0.1:8010", "training"):
        assert shown in text
    # Step 2 of before is done again: its line is of a future that did not come.
    assert [line["loss"] for line in page.view()["look"].steps] == [9.25, 1.5]
    assert page.view()["worlds"] == [(1.0, 1.0), (2.0, 3.0), (2.0, 3.0)]


def test_a_long_run_is_thinned_and_its_end_kept(view: RunView) -> None:
    history = RunHistory(WorkerMetrics())
    history.on_train_begin(view)
    for step in range(1, 3 * MOST_POINTS):
        history.on_step_end(view, record(step))
    kept = [line["step"] for line in history.look().steps]
    assert len(kept) <= MOST_POINTS
    assert kept[-1] == 3 * MOST_POINTS - 1
    assert kept[0] < 10


class Counting(FixtureTrainee):
    calls = 0

    def compute_logits(self, input_ids: object) -> torch.Tensor:
        self.calls += 1
        return super().compute_logits(input_ids)  # type: ignore[arg-type]  # handed on


def test_the_student_speaks_only_to_those_who_listen(view: RunView) -> None:
    student = Counting(64)
    voice = Voice(student, lambda: [sample(), sample(5)], decoder_of(student))
    figures = Evaluation(1.25, 0.5, 0.75, None, None, None, None, None, None, 7)
    voice.on_step_end(view, record(1))
    voice.on_evaluate(view, figures)
    assert student.calls == 0
    voice.listen()
    student.module.train()
    before = torch.get_rng_state()
    voice.on_step_end(view, record(1))
    assert student.module.training
    assert torch.equal(torch.get_rng_state(), before)
    said, short = voice.said
    assert said.prompt == "1 2 3 4 5 6 7 8 9 10 11 12"
    assert len(said.text.split()) == 24
    assert short.prompt == "1 2"
    assert short.written == "3 4 5"
    calls = student.calls
    voice.on_step_end(view, record(2))
    assert student.calls == calls
    voice.on_evaluate(view, figures)
    assert student.calls > calls


def test_a_student_that_cannot_speak_does_not_end_the_run(view: RunView) -> None:
    def broken() -> list[Sample]:
        raise RuntimeError("no samples")

    voice = Voice(FixtureTrainee(64), broken, str)
    voice.listen(now=True)
    voice.on_step_end(view, record(1))
    assert voice.said == []
