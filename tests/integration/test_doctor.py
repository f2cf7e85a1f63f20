"""`stillhouse doctor` beside real services: what answers, what does not, and what does not fit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import build_app
from stillhouse.doctor import deployment
from stillhouse.doctor.deployment import TeacherAt
from stillhouse.doctor.finding import Finding
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.conftest import ServeTeacher

TOKEN = "right-token-0123456789"


async def teacher(at: TeacherAt, run: Path | None = None) -> list[Finding]:
    return await asyncio.to_thread(lambda: list(deployment.teacher(at, run)))


def write_run(folder: Path, weights: str) -> Path:
    (folder / "run.json").write_text(json.dumps({"identity": {"teacher": weights}}))
    return folder


async def test_a_teacher_that_answers(serve_teacher: ServeTeacher, tmp_path: Path) -> None:
    async with serve_teacher() as service:
        weights = service.lifecycle.teacher.description.weights_fingerprint
        at = TeacherAt(f"127.0.0.1:{service.grpc_port}")
        found = await teacher(at, write_run(tmp_path, weights))
        assert [one.tone for one in found] == ["ok", "ok", "ok"]
        other = (await teacher(at, write_run(tmp_path, "another")))[-1]
        assert (other.about, other.tone) == ("fingerprints", "problem")
        nothing = (await teacher(at, tmp_path / "no"))[-1]
        assert (nothing.about, nothing.tone) == ("fingerprints", "problem")
        http = await asyncio.to_thread(lambda: list(deployment.http(f"http://127.0.0.1:{service.http_port}/", None)))
        assert [(one.about, one.tone) for one in http] == [("HTTP", "ok"), ("clock", "ok")]
        service.lifecycle.drain()
        http = await asyncio.to_thread(lambda: list(deployment.http(f"http://127.0.0.1:{service.http_port}", None)))
        assert (http[0].tone, "draining" in http[0].said) == ("problem", True)


async def test_a_teacher_that_does_not(serve_teacher: ServeTeacher) -> None:
    (away,) = await teacher(TeacherAt("127.0.0.1:1"))
    assert (away.tone, "TeacherUnavailableError" in away.said) == ("problem", True)
    async with serve_teacher(tokens=TOKEN) as service:
        at = f"127.0.0.1:{service.grpc_port}"
        (closed,) = await teacher(TeacherAt(at))
        assert "STILLHOUSE_TEACHER_TOKEN" in closed.remedy
        assert {one.tone for one in await teacher(TeacherAt(at, TOKEN))} == {"ok"}
    (nobody,) = await asyncio.to_thread(lambda: list(deployment.http("http://127.0.0.1:1", None)))
    assert nobody.tone == "problem"


def test_a_redis_that_forgets_nothing_and_one_that_is_away(own_valkey: ValkeyProcess) -> None:
    url = own_valkey.url
    found = {one.said: one.tone for one in deployment.redis(url)}
    assert any("no maxmemory" in said and tone == "problem" for said, tone in found.items()), found
    (away,) = deployment.redis("redis://:hidden-password@127.0.0.1:1/0")
    assert away.tone == "problem"
    assert "hidden-password" not in str(away)


def test_a_lighthouse_that_is_not_there() -> None:
    (away,) = deployment.lighthouse("127.0.0.1:1")
    assert (away.tone, "student lighthouse" in away.remedy) == ("problem", True)
    (wrong,) = deployment.lighthouse("nowhere")
    assert wrong.tone == "problem"


async def test_the_verb_looks_at_all_that_is_named(
    serve_teacher: ServeTeacher, valkey: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serve_teacher(tokens=TOKEN) as service:
        monkeypatch.setenv("STILLHOUSE_TEACHER_TOKEN", TOKEN)
        monkeypatch.setenv("STILLHOUSE_REDIS_URL", valkey)
        named = ["--teacher", f"127.0.0.1:{service.grpc_port}", "--http", f"http://127.0.0.1:{service.http_port}"]
        command = ["doctor", "--json", "--port", "0", "--disk", str(tmp_path), *named, "--lighthouse", "127.0.0.1:1"]
        shown = await asyncio.to_thread(CliRunner().invoke, build_app(), command)
    abouts = {one["about"] for one in json.loads(shown.stdout)}
    assert abouts >= {"release", "GPU", "disk", "ports", "clock", "teacher", "HTTP", "Redis", "lighthouse"}
    assert TOKEN not in shown.stdout
    assert shown.exit_code == 2
