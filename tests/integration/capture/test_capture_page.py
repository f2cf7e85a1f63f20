"""What docs/capture.md shows is what there is: its script runs, and its commands and flags are understood."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
import yaml

from stillhouse import FixtureTeacher, Sampled
from stillhouse.cli.main import build_app
from tests.integration.conftest import ServeTeacher

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "capture.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [str(block) for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


async def test_the_script_by_hand_gets_the_answers_that_the_client_gets(
    serve_teacher: ServeTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = blocks("python")
    body = script.partition("\n\n")[2].strip().splitlines()
    assert len(body) <= 10
    async with serve_teacher(fixture_vocabulary_size=100) as service:
        code = script.replace("localhost:8000", f"127.0.0.1:{service.http_port}")
        names: dict[str, Any] = {}
        await asyncio.to_thread(exec, code, names)
    for number, block in enumerate(names["blocks"]):
        table = pq.read_table(tmp_path / f"answers-{number:06}.parquet")
        (payload,) = FixtureTeacher(100).logits([block], encoding=Sampled(50))
        assert table["position"].to_pylist() == list(range(len(block)))
        ids = [token for row in table["token_ids"].to_pylist() for token in row]
        assert ids == payload.token_ids.tolist()  # type: ignore[union-attr]  # it is sampled


def test_the_job_of_a_cluster_gives_a_command_that_is_understood() -> None:
    (job,) = (yaml.safe_load(block) for block in blocks("yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (line,) = container["args"]
    program, verb, *words = shlex.split(line.removeprefix("exec ").replace("$JOB_COMPLETION_INDEX", "0"))
    assert (program, verb) == ("stillhouse", "capture")
    group: Any = typer.main.get_command(build_app())
    group.commands[verb].make_context(verb, words)


def test_every_flag_that_the_page_names_is_one() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    group: Any = typer.main.get_command(build_app())
    known = {option for parameter in group.commands["capture"].params for option in parameter.opts}
    elsewhere = {"--help", "--mode"}
    assert set(re.findall(r"--[a-z][a-z-]*", prose)) <= known | elsewhere


def test_no_flag_has_a_name_of_its_own_for_what_training_names() -> None:
    group: Any = typer.main.get_command(build_app())
    ours, theirs = (
        {option for parameter in command.params for option in parameter.opts}
        for command in (group.commands["capture"], group.commands["student"].commands["train"])
    )
    shared = {option for option in ours if option in theirs}
    assert {
        "--data", "--block-size", "--held-out-samples", "--teacher", "--teacher-ca", "--teacher-certificate",
        "--teacher-key", "--teacher-wait-seconds", "--request-timeout-seconds", "--tokenizer", "--encoding",
        "--temperature", "--output-dir",
    } <= shared  # fmt: skip
