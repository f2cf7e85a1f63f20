"""The scene of every run that is tortured here, and the end of the one that nobody disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.students.proof import Proof, assert_each_sample_once, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import STEPS, Scene, set_scene
from tests.torture.students.services import LighthouseProcess


@pytest.fixture(scope="session")
def made_scene(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A teacher in deterministic mode, its Valkey, a corpus: for all runs."""
    with set_scene(tmp_path_factory.mktemp("scene"), tiny_llama_folder) as made:
        yield made


@pytest.fixture
def scene(made_scene: Scene) -> Scene:
    """The same, alive, its cache empty."""
    made_scene.restore()
    return made_scene


@pytest.fixture(scope="session")
def undisturbed(made_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """What a single worker comes to that nobody disturbs."""
    with Run(made_scene, tmp_path_factory.mktemp("undisturbed")) as run:
        run.start()
        assert run.end() == {"worker-0": 0}, run.told()
        proof = prove(run, STEPS)
    assert_each_sample_once(proof.samples)
    return proof


@pytest.fixture
def lighthouse(tmp_path: Path) -> Iterator[LighthouseProcess]:
    """A lighthouse that runs."""
    process = LighthouseProcess(tmp_path / "lighthouse")
    process.start()
    yield process
    process.stop()
