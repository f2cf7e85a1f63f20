"""`stillhouse compare`: the same student trained several ways, through real runs of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import forked
from tests.e2e.test_student_runs import records

STEPS = 4
ARMS = ["cross_entropy", "hidden:f32", "sampled:20:0"]


@pytest.fixture(scope="module")
def recipe(teacher: dict[str, str], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a tiny comparison; its tail's treatment has no effect in some arms, which leave it out."""
    folder = tmp_path_factory.mktemp("compared")
    keys = {
        "teacher": teacher["grpc"],
        "output_dir": str(folder / "arms"),
        "data": {
            "sources": [str(corpus / "notes.txt")],
            "text_separator": "\n\n",
            "block_size": 32,
            "held_out_samples": 6,
        },
        "student": {"keep_layers": "1"},
        "encoding": "top_k:8",
        "top_k_tail": "renormalise",
        "max_steps": STEPS,
        "eval_steps": 2,
        "save_steps": 1,
        "global_batch_size": 6,
        "learning_rate": 3e-3,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    return folder / "recipe.yaml"


def argv(recipe: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "stillhouse", "compare", str(recipe), "--encodings", "hidden:f32,sampled:20", *words]


def compare(recipe: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return forked.run(
        argv(recipe, *words),
        env={**os.environ, **environment},
        timeout=280,
    )


def test_the_arms_begin_alike_and_their_figures_are_those_of_their_runs(
    recipe: Path, student_environment: dict[str, str], tmp_path: Path
) -> None:
    # A variable wins over the recipe, and must not win over what makes an arm.
    environment = {**student_environment, "STUDENT_ALPHA": "0.2", "STUDENT_SEED": "7"}
    done = compare(recipe, environment, "--markdown", str(tmp_path / "page.md"))
    assert done.returncode == 0, done.stderr + done.stdout
    folder = recipe.parent / "arms"
    outcome = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in outcome["arms"]] == [line["name"] for line in outcome["summary"]] == ARMS
    assert [(arm["alpha"], arm["seed"]) for arm in outcome["arms"]] == [(1.0, 7), (0.2, 7), (0.2, 7)]
    for arm in outcome["arms"]:
        run = folder / arm["folder"]
        evaluations = records(run, "evaluation")
        assert [point["step"] for point in arm["curve"]] == [0, 2, STEPS]
        for name in ("cross_entropy", "kl", "agreement", "perplexity"):
            assert [point[name] for point in arm["curve"]] == [record[name] for record in evaluations]
            assert arm["start"][name] == outcome["arms"][0]["start"][name]
        assert arm["training_seconds"] == pytest.approx(sum(record["step_seconds"] for record in records(run, "step")))
    finals = [arm["final"]["cross_entropy"] for arm in outcome["arms"]]
    assert len(set(finals)) == len(finals), "each arm learns from something else"
    plain, hidden, sampled = outcome["arms"]
    assert plain["answer_bytes"] == 0
    assert hidden["answer_bytes"] > sampled["answer_bytes"] > 0
    assert all(record["kl"] is None for record in records(folder / plain["folder"], "step"))

    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    for shown in ("the text alone", "hidden:f32", f"{finals[1]:.3f}", "keep_layers", "stillhouse compare"):
        assert shown in page
    for figure in ("cross_entropy", "perplexity", "kl", "agreement"):
        assert f"images/comparison-{figure}.svg" in page
        assert "<svg" in (tmp_path / "images" / f"comparison-{figure}.svg").read_text(encoding="utf-8")
    assert "the text alone" in done.stdout

    # Nothing is done twice, and the same comes out.
    (folder / "comparison.json").unlink()
    began = time.time()
    again = compare(recipe, environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == len(ARMS)
    assert all((folder / arm["folder"] / "metrics.jsonl").stat().st_mtime < began for arm in outcome["arms"])
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8")) == outcome


def test_a_comparison_of_another_recipe_in_the_same_folder_is_refused(
    recipe: Path, student_environment: dict[str, str], tmp_path: Path
) -> None:
    arm = tmp_path / "arms" / "cross_entropy-42"
    arm.mkdir(parents=True)
    (arm / "result.json").write_text(json.dumps({"status": "done", "identity": {"recipe": "another"}}))
    done = compare(recipe, student_environment, "--output-dir", str(tmp_path / "arms"))
    assert done.returncode == 2
    assert "holds a run of another recipe" in done.stderr


@pytest.mark.long
def test_an_interrupted_comparison_goes_on_where_it_stood(
    recipe: Path, student_environment: dict[str, str], tmp_path: Path
) -> None:
    folder, gate = tmp_path / "arms", tmp_path / "between-steps@2.go"
    held = {"STILLHOUSE_FAILPOINTS": "between-steps@2=hold", "STILLHOUSE_FAILPOINTS_DIR": str(tmp_path)}
    gate.touch()
    process = forked.Popen(argv(recipe, "--output-dir", str(folder)), env={**os.environ, **student_environment, **held})

    def wait_for(pattern: str, words: str = "") -> None:
        deadline = time.monotonic() + 120
        while not any(words in path.read_text(encoding="utf-8") for path in folder.glob(pattern)):
            assert process.poll() is None
            assert time.monotonic() < deadline, f"waited in vain for {words!r} in {pattern}"
            time.sleep(0.02)

    try:
        wait_for("cross_entropy*/result.json")
        gate.unlink()  # the second arm is held after two of its four steps
        wait_for("hidden*/metrics.jsonl", '"step": 2,')
        process.send_signal(signal.SIGTERM)
        wait_for("hidden*.log", '"stopping"')
        gate.touch()
        assert process.wait(120) == 143
    finally:
        process.kill()
    (arm,) = [path for path in folder.glob("hidden*") if path.is_dir()]
    before: list[dict[str, Any]] = records(arm, "step")
    assert 2 <= len(before) < STEPS
    done = compare(recipe, student_environment, "--output-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 1
    assert records(arm, "step")[: len(before)] == before, "no step was done again"
    assert [record["step"] for record in records(arm, "step")] == list(range(1, STEPS + 1))
