"""`--plan`: what a run would take, and everything that would stop it, before a weight is loaded or a file written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def test_a_plan_adds_up_and_leaves_nothing_behind(train: Any, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "--plan", "--json", eval_steps=10, save_steps=8, micro_shards=4)
    assert run.returncode == 0, run.stderr
    plan = json.loads(run.stdout)
    assert not (tmp_path / "run").exists()
    student, teacher = plan["student_size"], plan["teacher_size"]
    assert 0 < student["parameters"] < teacher["parameters"]
    assert 0 < student["flops_per_token"] < teacher["flops_per_token"]
    n = student["trained_parameters"]
    memory = plan["memory"]
    assert (memory["weights"], memory["gradient"], memory["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert memory["sum_fast"] == 4 * n < memory["sum_exact"]
    assert memory["needed"] == 16 * n + memory["sum_exact"] + memory["head"]
    assert plan["steps"] == 20
    assert plan["epochs"] == pytest.approx(20 * 6 / plan["samples"])
    assert plan["disk"]["checkpoint"] == 12 * n
    assert plan["traffic_exact"] == plan["traffic_fast"] == 0

    # The teacher computes on this host's CPU, as the student is to.
    assert memory["prefetched"] == 0
    ahead = json.loads(train(tmp_path / "run", "--plan", "--json", prefetch_steps=1, prefetch_bytes=4096).stdout)
    assert ahead["memory"]["prefetched"] == 4096

    words = train(tmp_path / "run", "--plan", "--workers", "3", eval_steps=10)
    assert words.returncode == 0, words.stderr
    assert f"{student['parameters']:,} parameters" in words.stdout
    assert "3 worker(s)" in words.stdout


def test_a_student_that_is_its_own_teacher_is_refused_even_from_a_copied_folder(
    train: Any, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "another-name"
    shutil.copytree(tiny_llama_folder, copy)
    cases: list[dict[str, Any]] = [{"model": copy, "keep_layers": None}, {"keep_layers": "0-1"}]
    for keys in cases:
        for words in (["--plan"], []) if keys is cases[0] else ([],):
            run = train(tmp_path / "run", *words, **keys)
            assert run.returncode == 2, run.stderr
            assert "student and teacher have the same weights" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--callbacks", "nowhere_to_be_found:Mine"], "callbacks: 'nowhere_to_be_found:Mine' cannot be imported"),
        (["--lighthouse", "127.0.0.1:29510"], "run_token is missing"),
        (["--attn-implementation", "nonsense"], "student.attn_implementation 'nonsense' cannot be used"),
    ],
)
def test_a_plan_refuses_what_the_start_would(train: Any, tmp_path: Path, words: list[str], named: str) -> None:
    run = train(tmp_path / "run", "--plan", *words)
    assert run.returncode == 2
    assert named in run.stderr


def test_a_plan_refuses_a_folder_of_another_run_and_leaves_it(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"identity": {"recipe": "another"}, "recipe": {}}))
    run = train(folder, "--plan", "--resume")
    assert run.returncode == 2
    assert "holds a run whose recipe is another" in run.stderr
    (folder / "run.json").unlink()
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "state.json").write_text("{}")
    run = train(folder, "--plan")
    assert run.returncode == 2
    assert "checkpoint-5 is there already" in run.stderr


@pytest.mark.long
def test_an_exact_sum_that_does_not_fit_is_refused_with_fast_named(
    train: Any, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    """A student so wide that thirteen gradients are beyond any machine here, and one is not."""
    import psutil

    config = json.loads((tiny_llama_folder / "config.json").read_text())
    free = psutil.virtual_memory().available
    # Weights, gradient, AdamW and one sum take 20 bytes a parameter; an exact sum over 4,096 shards 48 more.
    parameters = free / 40
    width = 1024
    config |= {"hidden_size": width, "num_attention_heads": 16, "intermediate_size": int(parameters / (3 * width))}
    config |= {"num_hidden_layers": 1, "num_key_value_heads": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    keys = {"config": tmp_path / "config.json", "keep_layers": None, "tokenizer": tiny_llama_folder}
    big = {"global_batch_size": 4096, "micro_shards": 4096, "max_steps": 1, "warmup_steps": 0}
    exact = train(tmp_path / "run", "--plan", **keys, **big)
    assert exact.returncode == 2, exact.stderr
    assert "reduction: exact does not fit" in exact.stderr
    assert "reduction: fast needs" in exact.stderr
    fast = train(tmp_path / "run", "--plan", **keys, **big, reduction="fast")
    assert "sum, fast" in fast.stdout
    assert "does not fit" not in fast.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"warmup_steps": 30, "max_steps": None}, "warmup_steps 30 is more than the run's"),
        ({"smoke_steps": 21}, "smoke_steps 21 is more than max_steps 20"),
        ({"keep_layers": "0-7"}, "keep_layers"),
        ({"block_size": 1024}, "block_size 1024"),
        ({"early_stopping_patience": 2}, "early_stopping_patience has no effect"),
        ({"teacher": "127.0.0.1:1", "teacher_wait_seconds": 0, "request_timeout_seconds": 1}, "127.0.0.1:1"),
    ],
)
def test_what_a_start_would_refuse_the_plan_refuses(
    train: Any, tmp_path: Path, keys: dict[str, Any], named: str
) -> None:
    run = train(tmp_path / "run", "--plan", **keys)
    assert run.returncode == 2, run.stderr
    assert named in run.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
