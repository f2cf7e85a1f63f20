"""Students that learn from a store, with no teacher and no network: their bits are those of a live run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.e2e.conftest import Train, serving
from tests.e2e.test_eval import evaluated
from tests.e2e.test_student_runs import assert_same_bits, records

STEPS = 20
SECONDS = 300
"""Of one process, on a machine that does much else."""
OWN_SAMPLES: dict[str, Any] = {
    "teacher": None,
    "data": None,
    "text_separator": None,
    "block_size": None,
    "held_out_samples": None,
}
"""The keys of a live run that a run from a store does without."""

WATCHER = """
import sys


class NoTeacher:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "teacher_service":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, NoTeacher())

import grpc


def no_channel(*_, **__):
    raise AssertionError("a channel was opened")


grpc.insecure_channel = grpc.secure_channel = no_channel
"""

Capture = Callable[..., Path]
Argv = Callable[..., list[str]]


@pytest.fixture(scope="module")
def steady_teacher(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a deterministic teacher: its answers are the same whatever shares their batch."""
    model = ("--backend", "transformers", "--model", str(tiny_llama_folder), "--device", "cpu", "--dtype", "float32")
    with serving(tmp_path_factory.mktemp("steady"), *model, "--mode", "deterministic") as addresses:
        yield addresses["grpc"]


@pytest.fixture(scope="module")
def argv(student_argv: Argv, steady_teacher: str) -> Argv:
    """Makes the command of a student of that teacher."""
    return lambda output_dir, **keys: student_argv(output_dir, **{"teacher": steady_teacher, **keys})


@pytest.fixture(scope="module")
def run_student(train: Train, steady_teacher: str) -> Train:
    """Runs a student of that teacher to its end."""
    return lambda output_dir, *words, **keys: train(output_dir, *words, **{"teacher": steady_teacher, **keys})


@pytest.fixture(scope="module")
def capture(
    steady_teacher: str,
    corpus: Path,
    student_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Capture:
    """Captures the corpus of the tiny runs from their teacher; the same store for the same flags."""
    made: dict[tuple[str, ...], Path] = {}

    def run(encoding: str, *flags: str) -> Path:
        key = (encoding, *flags)
        if key not in made:
            folder = tmp_path_factory.mktemp("store") / "store"
            words = [
                f"--teacher={steady_teacher}",
                f"--output-dir={folder}",
                f"--data={corpus / 'notes.txt'}",
                f"--data={corpus / 'talks.jsonl'}",
                r"--text-separator=\n\n",
                "--block-size=32",
                "--held-out-samples=6",
                "--samples-per-shard=8",
                f"--encoding={encoding}",
                *flags,
            ]
            done = forked.run(
                [sys.executable, "-m", "stillhouse", "capture", *words],
                env={**os.environ, **student_environment},
                timeout=SECONDS,
            )
            assert done.returncode == 0, done.stderr
            made[key] = folder
        return made[key]

    return run


@pytest.fixture(scope="module")
def live(run_student: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that learnt from the live teacher, one for each encoding."""
    made: dict[str, Path] = {}

    def run(encoding: str) -> Path:
        if encoding not in made:
            folder = tmp_path_factory.mktemp("live") / "run"
            done = run_student(folder, encoding=encoding, eval_steps=10, save_steps=8)
            assert done.returncode == 0, done.stderr
            made[encoding] = folder
        return made[encoding]

    return run


@pytest.fixture
def alone(student_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which no teacher can be imported and no channel opened."""
    (tmp_path / "watcher").mkdir()
    (tmp_path / "watcher" / "sitecustomize.py").write_text(WATCHER, encoding="utf-8")
    return {**os.environ, **student_environment, "PYTHONPATH": str(tmp_path / "watcher")}


def without_network() -> list[str]:
    """The words before a command that take the network from it."""
    words = ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NOT PROVEN HERE: `unshare -rn` is not allowed, so that no network could be taken away")
    return words


def finished(words: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def answers(run: Path) -> dict[str, int]:
    receipt = json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    return dict(receipt["answers"])


@pytest.mark.parametrize("encoding", ["sampled:50", "hidden"])
def test_with_no_network_and_no_teacher_the_bits_are_those_of_the_live_run(
    encoding: str,
    capture: Capture,
    live: Callable[[str], Path],
    argv: Argv,
    alone: dict[str, str],
    tmp_path: Path,
) -> None:
    store = capture(encoding)
    words = argv(tmp_path / "run", **OWN_SAMPLES, store=store, eval_steps=10, save_steps=8)
    assert words[1:4] == ["-m", "student_worker", "train"]
    words[1:4] = ["-m", "stillhouse", "student", "train"]
    done = finished([*without_network(), *words], alone)
    assert done.returncode == 0, done.stderr
    ours, theirs = records(tmp_path / "run", "step"), records(live(encoding), "step")
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]
    assert_same_bits(tmp_path / "run", live(encoding))
    evaluations = records(tmp_path / "run", "evaluation")
    assert [record["step"] for record in evaluations] == [0, 10, STEPS]
    assert all(record["kl"] is not None for record in evaluations)
    assert (evaluations[-1]["agreement"] is not None) == (encoding == "hidden")
    counted = answers(tmp_path / "run")
    assert counted["teacher"] == 0
    assert counted["store"] >= STEPS * 6


def test_killed_and_resumed_the_bits_are_the_same(
    capture: Capture,
    live: Callable[[str], Path],
    argv: Argv,
    alone: dict[str, str],
    tmp_path: Path,
) -> None:
    keys = {**OWN_SAMPLES, "store": capture("sampled:50"), "eval_steps": 10, "save_steps": 2}
    process = subprocess.Popen(
        argv(tmp_path / "run", **keys), env=alone, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob("checkpoint-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "run" / "export").exists(), "it was to be killed before its end"
    resumed = finished([*argv(tmp_path / "run", **keys), "--resume"], alone)
    assert resumed.returncode == 0, resumed.stderr
    assert [record["step"] for record in records(tmp_path / "run", "step")] == list(range(1, STEPS + 1))
    assert_same_bits(tmp_path / "run", live("sampled:50"))


def test_two_workers_end_with_the_bits_of_one(
    capture: Capture,
    live: Callable[[str], Path],
    argv: Argv,
    alone: dict[str, str],
    tmp_path: Path,
) -> None:
    keys = {**OWN_SAMPLES, "store": capture("sampled:50"), "eval_steps": 10, "save_steps": 8}
    done = finished([*argv(tmp_path / "run", **keys), "--workers=2"], alone)
    assert done.returncode == 0, done.stderr
    assert max(record["world_size"] for record in records(tmp_path / "run", "step")) == 2
    assert_same_bits(tmp_path / "run", live("sampled:50"))


def test_a_run_that_the_live_teacher_began_goes_on_from_the_store(
    capture: Capture, run_student: Train, live: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = {"encoding": "sampled:50", "eval_steps": 10, "save_steps": 8}
    shutil.copytree(live("sampled:50"), tmp_path / "run")
    for leftover in ("export", "result.json", "receipt.json"):
        place = tmp_path / "run" / leftover
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-20")
    done = run_student(tmp_path / "run", "--resume", **{**OWN_SAMPLES, **keys, "store": capture("sampled:50")})
    assert done.returncode == 0, done.stderr
    assert_same_bits(tmp_path / "run", live("sampled:50"))


def test_with_both_the_store_answers_first_and_the_teacher_what_is_missing(
    capture: Capture, run_student: Train, live: Callable[[str], Path], tmp_path: Path
) -> None:
    share = capture("sampled:50", "--part=0/2")
    refused = run_student(tmp_path / "refused", **OWN_SAMPLES, store=share)
    assert refused.returncode == 2
    assert "0/2" in refused.stderr.splitlines()[-1]
    done = run_student(tmp_path / "run", store=share, eval_steps=10, save_steps=8, eval_encoding="hidden")
    assert done.returncode == 0, done.stderr
    assert_same_bits(tmp_path / "run", live("sampled:50"))
    counted = answers(tmp_path / "run")
    assert counted["store"] > 10
    assert counted["teacher"] > 10
    assert records(tmp_path / "run", "evaluation")[-1]["agreement"] is not None


def test_a_damaged_shard_ends_a_run_that_keeps_its_steps_and_beside_a_teacher_does_not(
    capture: Capture, run_student: Train, live: Callable[[str], Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(capture("sampled:50"), store)
    shard = sorted((store / "train").glob("*.parquet"))[-1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    shard.write_bytes(data)
    ended = run_student(
        tmp_path / "run",
        **OWN_SAMPLES,
        store=store,
        save_steps=50,
        prefetch_steps=0,
        global_batch_size=2,
        micro_shards=1,
        max_steps=60,
    )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"train/{shard.name}" in last
    done = len(records(tmp_path / "run", "step"))
    assert done == 0 or (tmp_path / "run" / f"checkpoint-{done}").is_dir()
    beside = run_student(tmp_path / "beside", store=store, eval_steps=10, save_steps=8, encoding="sampled:50")
    assert beside.returncode == 0, beside.stderr
    assert beside.stderr.count("store_is_damaged") >= 1
    assert_same_bits(tmp_path / "beside", live("sampled:50"))


def test_the_plan_and_the_evaluation_of_a_student_work_from_a_store(
    capture: Capture,
    run_student: Train,
    live: Callable[[str], Path],
    corpus: Path,
    steady_teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = capture("hidden")
    plan = run_student(tmp_path / "planned", "--plan", "--json", **OWN_SAMPLES, store=store, eval_steps=10)
    assert plan.returncode == 0, plan.stderr
    told = json.loads(plan.stdout)
    assert told["store"] == str(store)
    assert told["held_out_samples"] == 6
    assert not (tmp_path / "planned").exists()
    export = live("hidden") / "export"
    asked: list[str | Path] = ["--data", corpus / "notes.txt", "--data", corpus / "talks.jsonl"]
    asked += ["--text-separator", r"\n\n", "--block-size", "32", "--held-out-samples", "6"]
    words = (export, *asked, "--teacher", steady_teacher, "--encoding", "hidden")
    theirs = evaluated(tmp_path / "live.json", *words)["figures"]
    assert evaluated(tmp_path / "stored.json", export, "--store", store)["figures"] == theirs
    alone = evaluated(tmp_path / "alone.json", export, "--store", store, "--no-teacher")["figures"]
    assert alone["cross_entropy"] == pytest.approx(theirs["cross_entropy"], rel=1e-6)
