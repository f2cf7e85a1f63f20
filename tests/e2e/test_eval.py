"""`stillhouse eval`: a finished student beside its teacher and by itself, with the figures that its run had."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stillhouse.cli.main import run
from student_worker.verbs.evaluation import evaluate
from tests import forked
from tests.e2e.test_student_runs import records

Capture = pytest.CaptureFixture[str]

STEPS = 6


@pytest.fixture(scope="module")
def recipe(teacher: dict[str, str], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a tiny run."""
    folder = tmp_path_factory.mktemp("evaluated")
    keys = {
        "teacher": teacher["grpc"],
        "output_dir": str(folder / "run"),
        "data": {
            "sources": [str(corpus / "notes.txt"), str(corpus / "talks.jsonl")],
            "text_separator": "\n\n",
            "block_size": 32,
            "held_out_samples": 6,
        },
        "student": {"keep_layers": "1"},
        "max_steps": STEPS,
        "global_batch_size": 6,
        "learning_rate": 1e-3,
        "http_port": 0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def export(recipe: Path, student_environment: dict[str, str]) -> Path:
    """What that run exported."""
    done = command(student_environment, "student", "train", str(recipe))
    assert done.returncode == 0, done.stderr
    return recipe.parent / "run" / "export"


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is evaluated in this process takes over the threads of its run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def command(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return forked.run(
        [sys.executable, "-m", "stillhouse", *words],
        env={**os.environ, **environment},
        timeout=120,
    )


def evaluated(file: Path, *words: str | Path) -> dict[str, Any]:
    """Evaluate in this process; return the report."""
    import typer

    app = typer.Typer()
    app.command()(evaluate)
    assert run(app, "stillhouse eval", [*map(str, words), "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def test_an_export_has_the_very_figures_of_its_runs_last_evaluation(
    recipe: Path, export: Path, student_environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    done = command(student_environment, "eval", str(export), "--recipe", str(recipe), "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    last = records(recipe.parent / "run", "evaluation")[-1]
    assert last["step"] == STEPS
    figures = {name: last[name] for name in report["figures"]}
    assert report["figures"] == figures
    assert figures.keys() == last.keys() - {"event", "step"}
    assert figures.keys() >= {"cross_entropy", "perplexity", "kl", "agreement", "cross_entropy_teacher"}
    assert (report["data"]["part"], report["data"]["samples"]) == ("held_out", 6)
    for shown in ("KL(teacher || student)", f"{figures['kl']:.4f}", f"{figures['agreement']:.2%}", "held-out part"):
        assert shown in done.stdout


def test_without_a_teacher_the_perplexity_is_that_of_the_plain_formula(
    export: Path, corpus: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = (export, "--data", corpus / "notes.txt", "--text-separator", r"\n\n", "--block-size", "512")
    report = evaluated(tmp_path / "figures.json", *words)
    assert (report["teacher"], report["encoding"], report["data"]["part"]) == (None, None, "train")
    model: Any = AutoModelForCausalLM.from_pretrained(export)
    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    total, rows = 0.0, 0
    for text in (corpus / "notes.txt").read_text(encoding="utf-8").split("\n\n"):
        ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        rows += ids.shape[1] - 1
    # Blocks cut a document in two now and then, whose second half begins anew.
    assert report["figures"]["num_rows"] == pytest.approx(rows, abs=len(words))
    assert report["figures"]["perplexity"] == pytest.approx(math.exp(total / rows), rel=2e-2)


def test_the_cross_entropy_is_the_same_beside_a_teacher_and_alone(
    export: Path, recipe: Path, teacher: dict[str, str], tmp_path: Path
) -> None:
    beside = evaluated(tmp_path / "1.json", export, "--recipe", recipe, "--teacher", teacher["grpc"])["figures"]
    alone = evaluated(tmp_path / "2.json", export, "--recipe", recipe, "--no-teacher")["figures"]
    assert alone["cross_entropy"] == pytest.approx(beside["cross_entropy"], rel=1e-6)
    assert alone["perplexity"] == pytest.approx(beside["perplexity"], rel=1e-6)
    assert alone["calibration_error"] == pytest.approx(beside["calibration_error"], rel=1e-6)
    assert {"loss", "kl"} <= beside.keys() - alone.keys()
    of_the_run = evaluated(tmp_path / "3.json", export.parent, "--recipe", recipe, "--no-teacher")
    assert of_the_run["figures"] == alone, "of a run's folder it is the export"


def test_the_teacher_itself_is_at_no_distance(tiny_llama_folder: Path, recipe: Path, tmp_path: Path) -> None:
    figures = evaluated(tmp_path / "1.json", tiny_llama_folder, "--recipe", recipe, "--encoding", "dense:f32")[
        "figures"
    ]
    assert figures["kl"] == pytest.approx(0, abs=1e-5)
    assert figures["agreement"] > 0.99
    assert figures["cross_entropy"] == pytest.approx(figures["cross_entropy_teacher"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["EXPORT"], "sources must be given"),
        (["EXPORT", "--recipe", "RECIPE", "--data", "x.txt"], "--data is given, but the data is the recipe's"),
        (["EXPORT", "--recipe", "RECIPE", "--encoding", "sampled:50"], "does not tell the teacher's first choice"),
        (["EXPORT", "--recipe", "RECIPE", "--no-teacher", "--teacher", "x:1"], "drop one"),
        (["EXPORT", "--data", "NOTES", "--encoding", "dense"], "no effect without a teacher"),
        (["EXPORT", "--data", "NOTES", "--part", "held_out"], "nothing is held out"),
        (["EXPORT", "--data", "NOTES", "--json", "/no/such/folder/x.json"], "no such folder"),
        (["./nowhere", "--data", "NOTES"], "'./nowhere' does not exist"),
        (["EXPORT", "--data", "NOTES", "--teacher", "127.0.0.1:1", "--timeout-seconds", "0.5"], "127.0.0.1:1"),
    ],
)
def test_a_wrong_question_is_one_line_and_exit_code_2(
    words: list[str], complaint: str, export: Path, recipe: Path, corpus: Path, capsys: Capture
) -> None:
    import typer

    app = typer.Typer()
    app.command()(evaluate)
    places = {
        "EXPORT": str(export),
        "RUN": str(export.parent),
        "RECIPE": str(recipe),
        "NOTES": str(corpus / "notes.txt"),
    }
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert run(app, "stillhouse eval", words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint.replace("EXPORT", str(export)) in error
