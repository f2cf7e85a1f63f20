"""What `stillhouse doctor` says of a machine: each fault is named, with what to do about it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import build_app
from stillhouse.doctor import machine
from stillhouse.doctor.finding import Finding, ok, run_checks
from stillhouse.errors import ConfigurationError


def tones(findings: list[Finding]) -> set[str]:
    return {finding.tone for finding in findings}


def test_a_check_that_fails_hides_no_other() -> None:
    def fails() -> list[Finding]:
        raise RuntimeError("nobody expected that")

    first, second = run_checks([("broken", fails), ("whole", lambda: [ok("whole", "fine")])])
    assert (first.tone, first.about) == ("problem", "broken")
    assert "nobody expected that" in first.said
    assert second.tone == "ok"


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise ConfigurationError("device: this machine has an NVIDIA device, but torch is built without CUDA")

    monkeypatch.setattr("stillhouse.models.pick_device", refuse)
    (found,) = machine.gpu()
    assert found.tone == "problem"
    assert "driver" in found.remedy


def test_a_full_disk_and_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (missing,) = machine.disk([tmp_path / "no"])
    assert (missing.tone, "does not exist" in missing.said) == ("problem", True)
    usage = SimpleNamespace(total=2**40, used=0, free=2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    (full,) = machine.disk([tmp_path])
    assert (full.tone, "1.0 GiB free" in full.said) == ("problem", True)
    usage.free = 2**40
    assert tones(list(machine.disk([tmp_path]))) == {"ok"}


def test_a_port_that_a_stranger_holds_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (found,) = machine.ports([port])
    assert found.tone == "problem"
    assert str(port) in found.said
    assert tones(list(machine.ports([port]))) == {"ok"}


@pytest.mark.parametrize(("year", "tone"), [(1970, "problem"), (2031, "ok")])
def test_a_clock_that_cannot_be_right(monkeypatch: pytest.MonkeyPatch, year: int, tone: str) -> None:
    import time

    monkeypatch.setattr("time.gmtime", lambda: time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0)))
    assert tones(list(machine.clock())) == {tone}


def test_tokens_are_judged_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("trainer secret-secret-secret\n")
    file.chmod(0o644)
    environment = {"TEACHER_TOKENS": "a-good-long-token-012345,short", "TEACHER_TOKENS_FILE": str(file)}
    found = list(machine.secrets_of(environment))
    assert [one.tone for one in found] == ["problem", "problem"]
    assert "short" not in str(found).replace("fewer", "")
    assert "secret-secret" not in str(found)
    file.chmod(0o600)
    environment = {"TEACHER_TOKENS": "a-good-long-token-012345", "TEACHER_TOKENS_FILE": str(file)}
    assert tones(list(machine.secrets_of(environment))) == {"ok"}
    assert tones(list(machine.secrets_of({"TEACHER_TOKENS_FILE": str(tmp_path / "no")}))) == {"problem"}


def test_every_problem_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEACHER_TOKENS", "short")
    shown = CliRunner().invoke(build_app(), ["doctor", "--json", "--port", "0", "--disk", str(tmp_path / "no")])
    assert shown.exit_code == 2
    found = json.loads(shown.stdout)
    problems = [one for one in found if one["tone"] == "problem"]
    assert {one["about"] for one in problems} >= {"disk", "tokens"}
    assert all(one["remedy"] for one in problems)


def test_a_machine_that_is_well_ends_with_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LEAST_DISK_BYTES", "LEAST_MEMORY_BYTES"):
        monkeypatch.setattr(machine, name, 0)
    monkeypatch.delenv("TEACHER_TOKENS", raising=False)
    shown = CliRunner().invoke(build_app(), ["doctor", "--port", "0", "--disk", str(tmp_path)])
    assert shown.exit_code == 0, shown.stdout
    assert "0 problems" in shown.stdout
