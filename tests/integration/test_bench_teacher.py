"""`stillhouse bench teacher` against real services."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from stillhouse.bench.drive import Load, drive
from stillhouse.bench.queue_size import QueueSampler
from stillhouse.bench.report import build_report
from stillhouse.bench.workload import WorkloadSettings
from stillhouse.cli.main import build_app, run
from stillhouse.errors import ConfigurationError, TeacherUnavailableError, UnauthenticatedError
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService
from tests.integration.conftest import ServeTeacher

SETTINGS = WorkloadSettings(lengths="2..12", encodings="dense,top_k:4,sampled:5,candidates,candidates:1,7")
LABELS = {"dense:f32", "top_k:4:f16", "sampled:5:0", "candidates::f32", "candidates:1,7:f32"}
TOKEN = "0123456789abcdef"


@pytest.fixture
async def service(serve_teacher: ServeTeacher) -> AsyncIterator[TeacherService]:
    async with serve_teacher(fixture_vocabulary_size=40) as service:
        yield service


def address_of(service: TeacherService) -> str:
    return f"127.0.0.1:{service.grpc_port}"


async def report_of(service: TeacherService, settings: WorkloadSettings, load: Load, **options: Any) -> dict[str, Any]:
    measured = await drive(address_of(service), settings, load, **options)
    return json.loads(json.dumps(build_report(address_of(service), settings, load, measured), allow_nan=False))  # type: ignore[no-any-return]  # a report


async def test_a_closed_loop_answers_exactly_what_was_asked_for(service: TeacherService) -> None:
    report = await report_of(service, SETTINGS, Load(clients=3, requests=60, warmup_seconds=0.1, verify=True))
    assert report["figures"]["requests"] == 60
    assert report["figures"]["failed"] == report["repeats"] == report["compared"] == 0
    assert {row["encoding"] for row in report["rows"]} == {*LABELS, "all"}
    *each, overall = report["rows"]
    for name in ("requests", "sequences", "tokens_per_second", "positions_per_second", "megabytes_per_second"):
        assert sum(row[name] for row in each) == pytest.approx(overall[name])
    for row in report["rows"]:
        assert 0 < row["latency"]["p50"] <= row["latency"]["p90"] <= row["latency"]["p99"] <= row["latency"]["max"]
    assert overall["requests_per_second"] == pytest.approx(60 / report["figures"]["seconds"])
    assert report["server"]["compute"]["max"] > 0
    dense = next(row for row in report["rows"] if row["encoding"] == "dense:f32")
    assert 160 < dense["bytes_per_position"] < 160 + 48  # the header's share depends on the length


async def test_an_open_loop_keeps_its_rate_whatever_the_teacher_does(service: TeacherService) -> None:
    load = Load(clients=2, seconds=1.0, rate=50, warmup_seconds=0)
    report = await report_of(service, SETTINGS, load)
    assert 20 <= report["figures"]["requests"] <= 90
    assert any("open loop" in note for note in report["notes"])


async def test_repeats_hit_the_cache_and_are_verified(serve_teacher: ServeTeacher, valkey: str) -> None:
    async with serve_teacher(valkey, fixture_vocabulary_size=41) as service:
        settings = WorkloadSettings(lengths="2..12", encodings="dense", repeat=0.5)
        report = await report_of(service, settings, Load(clients=2, requests=80, warmup_seconds=0, seed=3, verify=True))
    assert report["repeats"] == report["compared"] > 20
    assert report["different"] == 0
    # One that is asked again while the first is still under way is joined to it, which is no hit.
    assert 0 < report["cache_hits"] <= report["repeats"]


class Forgetful(FixtureBackend):
    """Answers each time as if the vocabulary began elsewhere."""

    times = 0

    def head(self, hidden_rows: Tensor) -> Tensor:
        self.times += 1
        return super().head(hidden_rows).roll(self.times, dims=1)


async def test_a_teacher_that_contradicts_itself_is_found(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(given=Forgetful(40)) as service:
        settings = WorkloadSettings(lengths="3", encodings="dense", repeat=0.5, cache_mode="bypass")
        report = await report_of(service, settings, Load(clients=1, requests=30, warmup_seconds=0, verify=True))
    assert report["different"] > 0


async def test_the_queue_is_sampled_with_its_own_token(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN, scrape_token="scrape-0123456789") as service:
        url = f"http://127.0.0.1:{service.http_port}"
        load = Load(clients=2, seconds=0.6, warmup_seconds=0)
        report = await report_of(
            service,
            SETTINGS,
            load,
            client_options={"token": TOKEN},
            queue=QueueSampler(url, token="scrape-0123456789"),
        )
        assert report["queue_size"]["samples"] >= 2
        assert report["queue_size"]["failed"] == 0
        with pytest.raises(ConfigurationError, match=r"metrics .*401"):
            await drive(address_of(service), SETTINGS, load, client_options={"token": TOKEN}, queue=QueueSampler(url))
        with pytest.raises(UnauthenticatedError):
            await drive(address_of(service), SETTINGS, load)


async def test_nobody_there_is_no_load() -> None:
    with pytest.raises(TeacherUnavailableError, match=r"127\.0\.0\.1:1"):
        await drive("127.0.0.1:1", SETTINGS, Load(requests=1))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({}, "give one of the two"),
        ({"seconds": 1, "requests": 1}, "give one of the two"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"requests": 1, "clients": 0}, "clients"),
        ({"requests": 1, "rate": float("nan")}, "rate"),
        ({"requests": 1, "warmup_seconds": -1}, "warmup_seconds"),
        ({"requests": 1, "seed": -1}, "seed"),
    ],
)
def test_a_load_that_cannot_be_is_refused(load: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Load(**load)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "stillhouse", "bench", "teacher", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STILLHOUSE_")}
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
    )


async def test_the_command_prints_tables_writes_json_and_ends_with_0(
    serve_teacher: ServeTeacher, tmp_path: Path
) -> None:
    async with serve_teacher(tokens=TOKEN, fixture_vocabulary_size=70) as service:
        file = tmp_path / "report.json"
        done = await asyncio.to_thread(
            command, address_of(service), "--requests", "30", "--lengths", "2..9", "--json", str(file),
            "--metrics", f"127.0.0.1:{service.http_port}", "--repeat", "0.3", "--verify", "--seed", "1",
            STILLHOUSE_TEACHER_TOKEN=TOKEN,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        report = json.loads(file.read_text())
        for words in (
            "30 requests",
            "requests",
            "p99",
            "teacher: queue",
            "cache:",
            "verified:",
            "0 different",
            "queue:",
        ):
            assert words in done.stdout
        assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith(("note", "fixture")))
        assert report["settings"]["seed"] == 1
        assert TOKEN not in file.read_text() + done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1",), "127.0.0.1:1: UNAVAILABLE"),
        (("127.0.0.1:1", "--clients", "0"), "clients must be above 0"),
        (("nowhere",), "address must be host:port"),
        (("127.0.0.1:1", "--seconds", "1", "--requests", "1"), "give one of the two"),
        (("127.0.0.1:1", "--json", "/no/such/folder/report.json"), "there is no such folder"),
        (("127.0.0.1:1", "--certificate", "client.crt"), "together, or neither"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(build_app(), "stillhouse", ["bench", "teacher", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


async def test_a_missing_token_is_exit_2_and_a_contradiction_exit_3(
    serve_teacher: ServeTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(service: TeacherService, *arguments: str) -> int:
        return run(build_app(), "stillhouse", ["bench", "teacher", address_of(service), *arguments])

    async with serve_teacher(tokens=TOKEN) as service:
        assert await asyncio.to_thread(bench, service, "--requests", "1") == 2
    assert "token" in capsys.readouterr().err
    async with serve_teacher(given=Forgetful(40), mode="deterministic") as service:
        load = "--requests 30 --clients 1 --lengths 3 --encodings dense --repeat 0.5 --cache-mode bypass --verify"
        assert await asyncio.to_thread(bench, service, *load.split()) == 3
    assert "differ from the first to the same request" in capsys.readouterr().err
