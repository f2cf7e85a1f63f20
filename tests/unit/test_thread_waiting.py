"""Threads of a computation spin briefly and then sleep, unless whoever starts the command has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stillhouse.thread_waiting import SPINS, VARIABLES, spin_briefly


@pytest.fixture(autouse=True)
def _says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_they_spin_briefly_where_the_environment_says_nothing() -> None:
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "100000")])
def test_what_the_environment_says_stands(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    spin_briefly()
    assert {key: os.environ[key] for key in VARIABLES if key in os.environ} == {name: value}


@pytest.mark.parametrize("module", ["stillhouse.cli.main", "teacher_service.__main__", "student_worker.__main__"])
def test_every_command_chooses_before_torch_is_there_to_have_chosen(module: str) -> None:
    script = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
