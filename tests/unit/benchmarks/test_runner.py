"""The benchmarks can be listed and run, and what they write has the shape that readers of it rely on."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import kd_kernel
from benchmarks.__main__ import app, questions
from benchmarks._measure import interleave

runner = CliRunner()


def test_the_list_names_every_benchmark_with_its_question() -> None:
    result = runner.invoke(app, ["list"])
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.output.splitlines()} == set(questions())
    assert all(question.endswith("?") for question in questions().values())
    assert "kd_kernel" in questions()


def test_a_run_writes_the_whole_table_and_the_headline_figures(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = runner.invoke(app, ["run", "kd_kernel", "--quick", "--json", str(file)])
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    assert list(written) == ["name", "machine", "date", "rounds", "rows", "figures"]
    assert written["name"] == "kd_kernel"
    assert datetime.fromisoformat(written["date"]).tzinfo is not None
    assert written["machine"]["torch"] == torch.__version__
    assert written["figures"].keys() >= {"speedup_over_eager", "ratio_to_memory_pass"}
    assert all(value > 0 for value in written["figures"].values())
    assert {"eager", "stillhouse", "memory pass"} <= {row["contestant"] for row in written["rows"]}


def test_head_and_loss_in_one_take_less_memory_even_when_small(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = runner.invoke(app, ["run", "head_and_loss", "--quick", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert 0 < json.loads(file.read_text())["figures"]["peak_memory_over_plain"] < 0.9


def test_an_unknown_benchmark_is_one_line_and_exit_2() -> None:
    result = runner.invoke(app, ["run", "kd_colonel"])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "there is no benchmark 'kd_colonel'" in result.output


def test_contestants_take_turns() -> None:
    order: list[str] = []
    timings = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 5
    assert all(0 <= t.minimum <= t.median <= t.maximum for t in timings.values())


def test_a_fast_wrong_answer_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    block = kd_kernel._Block(kd_kernel.SETTINGS[0], 4, 64, torch.device("cpu"))
    block.check()
    monkeypatch.setattr(block, "stillhouse", lambda: (block.eager()[0], torch.zeros(4, 64)))
    with pytest.raises(AssertionError, match="gradients differ"):
        block.check()
