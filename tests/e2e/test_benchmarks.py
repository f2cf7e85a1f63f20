"""Every benchmark runs from its beginning to its end in its quick form, and gives the figures that the page shows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import questions
from benchmarks.report.goals import HEADLINES

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", questions())
def test_its_quick_form_runs_and_gives_its_figures(name: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    argv = [sys.executable, "-m", "benchmarks", "run", name, "--quick", "--json", str(file)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(file.read_text())["figures"]
    shown = {one.figure for one in HEADLINES if one.benchmark == name and not one.needs_peers}
    assert figures.keys() >= shown
    assert all(math.isfinite(value) for value in figures.values())
