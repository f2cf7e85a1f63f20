"""A worker's page in a real Chromium, beside a run that goes on: curves, time, workers, words, light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stillhouse.data import Sample
from student_worker.app import HttpServer, bind, build_app
from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.metrics import WorkerMetrics
from student_worker.page.page import RunPage
from student_worker.recipe.schema import Recipe
from student_worker.students.fixture import FixtureTrainee
from tests.integration.pages.browser import NARROW, WIDE, Browser

pytestmark = pytest.mark.long  # a browser takes its time on a busy machine

TOKEN = "right-token-0123456789"
STEPS = 240


class Run:
    """A run without a trainer: what it would have told."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        recipe = Recipe.model_validate(
            {
                "teacher": "127.0.0.1:8001",
                "output_dir": folder / "thirty-to-eleven",
                "data": {"sources": ["a.txt"]},
                "student": {"kind": "fixture", "vocabulary_size": 16},
                "max_steps": 400,
            }
        )
        self.metrics = WorkerMetrics()
        self.page = RunPage(recipe, self.metrics, lambda: True)
        app = build_app(self.metrics.registry, lambda: True, self.page, token)
        self.server = HttpServer(app, bind("127.0.0.1", 0))
        self.url = f"{self.server.address}/"
        self.view = RunView(folder, "thirty-to-eleven", 0, 400, is_first=True)
        facts = {"Student": "11 of the 30 layers of smollm2", "Teacher": "smollm2", "Encoding": "hidden:bf16"}
        self.watchers: list[Callback] = self.page.watch(FixtureTrainee(16), lambda: [sample()] * 2, facts)

    def go(self, steps: int) -> None:
        for watcher in self.watchers:
            watcher.on_train_begin(self.view)
        for step in range(1, steps + 1):
            self.view.step = step
            world = 1 + (step > 40) + (step > 90) - (step > 170)
            kl = 0.4 + 4.6 * math.exp(-step / 60) + 0.15 * math.sin(step * 1.7)
            rate = 900.0 * world + 60 * math.sin(step / 5)
            self.metrics._spent("compute", 0.6)
            self.metrics._spent("teacher_wait", 0.1)
            self.metrics._spent("reduce", 0.12)
            self.metrics._spent("quorum", 0.02)
            record = StepRecord(step, kl + 0.05, kl + 2.1, kl, 3e-4, 1.0, 512, rate, 0.1, 0.9, world, 1 << 20)
            for watcher in self.watchers:
                watcher.on_step_end(self.view, record)
            if step % 40 == 0:
                held = Evaluation(kl + 0.2, kl + 0.2, 0.85 - kl / 8, 2.9, 18.2, 0.03, 2.4, 11.0, 0.02, 4096)
                self.metrics._spent("evaluate", 2.0)
                self.metrics._spent("checkpoint", 0.8)
                for watcher in self.watchers:
                    watcher.on_evaluate(self.view, held)
                    watcher.on_save(self.view, f"runs/first/checkpoint-{step}")


def sample() -> Sample:
    ids = torch.arange(1, 15, dtype=torch.int64).numpy()
    return Sample(ids, ids, ids > 0, ())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.server.close()


def test_a_run_is_seen_as_it_goes(run: Run, browser: Browser) -> None:
    browser.open(run.url)
    assert browser.texts("h1") == ["thirty-to-eleven"]
    run.go(STEPS)
    browser.until(lambda: f"Step {STEPS} of 400" in browser.one(".lead").text)
    assert "forward and backward" in browser.one("#live-bottom").text
    browser.until(lambda: browser.texts("#voice blockquote"))
    assert browser.faults() == []


@pytest.mark.parametrize("width", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_good_to_look_at(run: Run, browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    run.page.listen(now=True)
    run.go(STEPS)
    browser.open(run.url, width=width, dark=dark)
    assert browser.overflow() <= 0
    assert browser.violations() == []
    name = f"student-{'narrow' if width == NARROW else 'wide'}-{'dark' if dark else 'light'}"
    assert browser.photograph(name, tmp_path).stat().st_size > 10_000


def test_a_token_lets_a_person_in(browser: Browser, tmp_path: Path) -> None:
    run = Run(tmp_path, TOKEN)
    try:
        browser.open(run.url)
        browser.one("#token").send_keys("wrong-token-0123456789\n")
        browser.until(lambda: browser.texts("[role=alert]") == ["That token is unknown here."])
        browser.one("#token").send_keys(f"{TOKEN}\n")
        browser.until(lambda: browser.texts("h1") == ["thirty-to-eleven"])
        (cookie,) = browser.driver.get_cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    finally:
        run.server.close()
