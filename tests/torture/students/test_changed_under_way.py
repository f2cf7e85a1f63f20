"""A teacher, a corpus or a recipe that is not the run's any more: named, with the right exit code, and nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.torture.students.plans import chosen
from tests.torture.students.proof import Proof, assert_same, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import STEPS, Scene, write_corpus
from tests.torture.students.services import LighthouseProcess

GATE = "between-steps@9"


@pytest.fixture
def other_weights(scene: Scene, tmp_path: Path) -> Path:
    """The folder of a teacher that differs from the run's in its weights alone."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "other-teacher"
    shutil.copytree(scene.teacher.model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.01)
    model.save_pretrained(folder)
    return folder


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", chosen([2, 1]))
def test_the_teacher_comes_back_with_other_weights(
    workers: int, scene: Scene, undisturbed: Proof, other_weights: Path, tmp_path: Path
) -> None:
    with Run(scene, tmp_path / "run", points=f"{GATE}=hold") as run:
        run.launch(workers)
        run.until(lambda: run.struck_at(GATE) is not None, "nine steps")
        scene.teacher.kill()
        right, scene.teacher.model = scene.teacher.model, other_weights
        try:
            scene.teacher.start()
            run.let_go(GATE)
            assert run.end() == {"launcher": 3}, run.told()
            done = run.records()[-1]["step"]
            assert done >= 9
            assert (run.output / f"checkpoint-{done}").is_dir(), run.told()
            assert "the teacher has changed" in run.log("launcher")
            # Nor does it begin with the other one.
            run.launch(workers)
            assert run.end() == {"launcher": 2}, run.told()
            assert "teacher" in run.log("launcher").splitlines()[-1]
        finally:
            scene.teacher.kill()
            scene.teacher.model = right
            scene.teacher.start()
        run.launch(workers)
        assert run.end() == {"launcher": 0}, run.told()
        assert_same(prove(run, STEPS), undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_corpus_has_changed_since_the_checkpoint(scene: Scene, undisturbed: Proof, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    shutil.copy(scene.corpus, corpus)
    points = "mid-step@9=hold"
    with Run(scene, tmp_path / "run", points=points, data={"sources": [str(corpus)]}) as run:
        run.start()
        run.until(lambda: run.struck_at("mid-step@9") is not None, "nine steps")
        write_corpus(corpus, seed=1)
        run.kill_all()  # and it is started again, by whoever looks after it
        run.let_go("mid-step@9")
        assert run.end() == {"worker-0": 2}, run.told()
        assert "data" in run.log().splitlines()[-1]
        assert run.records()[-1]["step"] == 9
        shutil.copy(scene.corpus, corpus)
        run.start()
        assert run.end() == {"worker-0": 0}, run.told()
        assert_same(prove(run, STEPS), undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("difference", chosen(["learning_rate", "token"]))
def test_a_stranger_comes_to_the_lighthouse(
    difference: str, scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    """From another host, so in a folder of its own. Its number is lower: its rank would be 0."""
    keys: dict[str, Any] = {"learning_rate": 1e-4} if difference == "learning_rate" else {}
    # The rest of the run would else be over before a stranger that is ready has found the lighthouse.
    slowly = ",".join(f"between-steps@{step}=freeze:0.25" for step in range(10, STEPS))
    with (
        Run(scene, tmp_path / "run", lighthouse=lighthouse.address, points=f"{GATE}=hold,{slowly}") as run,
        Run(scene, tmp_path / "stranger", lighthouse=lighthouse.address, **keys) as stranger,
    ):
        if difference == "token":
            stranger.token = "another secret"
        run.start(1)
        run.until(lambda: run.struck_at(GATE) is not None, "nine steps")
        stranger.start(0)
        run.whenever(lambda: stranger.is_ready(0), lambda: run.let_go(GATE))

        def stranger_has_left() -> bool:
            stranger.watch()
            return stranger.is_over

        run.until(stranger_has_left, "the end of the stranger")
        assert stranger.end() == {"worker-0": 2}, stranger.told()
        assert difference in stranger.log().splitlines()[-1]
        assert not (stranger.output / "export").exists()
        assert run.end() == {"worker-1": 0}, run.told()
        assert run.places["worker-1"].starts == 1
        assert_same(prove(run, STEPS), undisturbed)
