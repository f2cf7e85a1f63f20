"""What computed a worker's loss stands in what it says of itself, and a start that computes it otherwise says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from stillhouse.kd import kernels
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.facts import device_facts
from student_worker.run_folder.output import warn_of_another_loss


def test_a_workers_facts_tell_what_computes_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_facts(torch.device("cpu"))["loss"] == kernels.kernel_name(torch.device("cpu"))
    monkeypatch.setattr(kernels, "is_compiled", lambda: False)
    assert device_facts(torch.device("cpu"))["loss"] == "row chunks"


@pytest.mark.parametrize(("earlier", "warned"), [("row chunks", False), ("compiled (numba 9.0)", True), (None, False)])
def test_a_resumed_run_says_that_another_kernel_computes_its_loss(
    tmp_path: Path, earlier: str | None, warned: bool
) -> None:
    facts = {"device": "cpu"} | ({} if earlier is None else {"loss": earlier})
    (tmp_path / "worker-3.json").write_text(json.dumps({"facts": facts}), encoding="utf-8")
    recipe = Recipe.model_construct(output_dir=tmp_path)
    with capture_logs() as logs:
        warn_of_another_loss(recipe, "row chunks")
    assert [line["event"] for line in logs] == ["loss_computed_otherwise"] * warned
    assert not warned or (logs[0]["worker"], logs[0]["theirs"], logs[0]["here"]) == ("3", earlier, "row chunks")
