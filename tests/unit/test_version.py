"""The commit is told wherever it can be known: in an image, in a checkout, after `pip install git+...`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse import version
from stillhouse.cli.main import build_app


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    version.source_commit.cache_clear()
    yield
    version.source_commit.cache_clear()


def test_an_image_names_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(version.COMMIT_VARIABLE, "0123abc")
    assert version.version_text() == f"{version.__version__} (0123abc)"
    shown = CliRunner().invoke(build_app(), ["--version"])
    assert shown.stdout == f"stillhouse {version.__version__} (0123abc)\n"


def test_a_checkout_names_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(version.COMMIT_VARIABLE, "unknown")
    if not (Path(version.__file__).parents[1] / ".git").exists():
        pytest.skip("no checkout: there is no .git beside the package")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", version.source_commit() or "")


class Installed(Distribution):
    def __init__(self, noted: object) -> None:
        self._noted = noted

    def read_text(self, filename: str) -> str | None:
        return json.dumps(self._noted) if filename == "direct_url.json" else None

    def locate_file(self, path: object) -> Path:
        raise NotImplementedError(path)


@pytest.mark.parametrize(
    ("noted", "commit"),
    [({"vcs_info": {"vcs": "git", "commit_id": "beef" * 10}}, "beef" * 10), ({"dir_info": {"editable": True}}, None)],
)
def test_an_installation_from_a_repository_remembers_it(
    monkeypatch: pytest.MonkeyPatch, noted: object, commit: str | None
) -> None:
    monkeypatch.delenv(version.COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr(version, "_of_checkout", lambda: None)
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Installed(noted))
    assert version.source_commit() == commit
    assert version.version_text() == (f"{version.__version__} ({commit})" if commit else version.__version__)
