"""Opening the teacher that the settings name: its stages are heard, and its mode is the one asked for."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import ConfigurationError
from teacher_service.backends import TeacherBackend, open_backend
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.backends.opening import installed_backends
from teacher_service.progress import Progress
from teacher_service.settings import TeacherSettings, load_settings


class Recorded(Progress):
    """Remembers every stage."""

    def __init__(self) -> None:
        self.heard_stages: list[str] = []
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "stage":
            self.heard_stages.append(str(value))


def test_loading_tells_its_stages_and_how_many_weights_are_read(tiny_llama_folder: Path) -> None:
    progress = Recorded()
    with progress.heard():
        open_backend(load_settings({"model": str(tiny_llama_folder)}, {}))
    stages = progress.heard_stages
    names = list(dict.fromkeys(stage.partition(" ")[0] for stage in stages))
    assert names == ["starting", "model", "weights", "tokenizer", "probe", "fingerprint"]
    parts = [stage for stage in stages if stage.startswith("weights ")]
    assert parts[0] == "weights 0%"
    assert parts[-1] == "weights 100%"
    assert len(parts) > 10


def test_ours_are_installed_as_anybody_elses_would_be() -> None:
    assert {"fixture", "transformers"} <= set(installed_backends())
    assert isinstance(open_backend(TeacherSettings(backend="fixture")), FixtureBackend)


@pytest.mark.parametrize(("pass_tokens", "shape"), [(0, "pass_tokens=1,"), (96, "pass_tokens=96,")])
def test_the_mode_of_the_settings_is_the_backends(tiny_llama_folder: Path, pass_tokens: int, shape: str) -> None:
    chosen = {"model": str(tiny_llama_folder), "deterministic_pass_tokens": pass_tokens, "device": "cpu"}
    described = open_backend(load_settings({**chosen, "mode": "deterministic"}, {})).describe()
    assert described.mode == "deterministic"
    assert shape in described.shapes
    assert f"transformers {version('transformers')}, numpy {version('numpy')}" in described.shapes
    assert open_backend(load_settings(chosen, {})).describe().mode == "throughput"


def test_a_backend_that_has_no_deterministic_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loose(FixtureBackend):
        def describe(self) -> Any:
            from dataclasses import replace

            return replace(super().describe(), mode="throughput")

    def open_loose(settings: TeacherSettings) -> TeacherBackend:
        return Loose(settings.fixture_vocabulary_size)

    monkeypatch.setattr("teacher_service.backends.opening.open_fixture", open_loose)
    open_backend(TeacherSettings(backend="fixture"))
    with pytest.raises(ConfigurationError, match="'fixture' has no deterministic mode: set mode to throughput"):
        open_backend(TeacherSettings(backend="fixture", mode="deterministic"))
