"""Whether a plan fits: memory by the kind of sum, disk by what is kept, each refusal with what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillhouse.disk import shown
from stillhouse.errors import ConfigurationError
from student_worker.planning.model_size import ModelSize
from student_worker.planning.plan import Disk, Memory, Plan, check_fits, workers_per_device
from student_worker.recipe.schema import Recipe

SIZE = ModelSize(1000, 1000, 2000)
MEMORY = Memory(
    weights=4000, gradient=4000, optimizer=8000, sum_exact=16000, sum_fast=4000, head=0, prefetched=0, held_out=0,
    free=40000,
)  # fmt: skip
DISK = Disk(checkpoint=12000, checkpoints=3, exports=4000, written=0, free=50000)


def plan(**changes: Any) -> Plan:
    base = Plan(
        recipe_hash="r", data_fingerprint="d", teacher="t", teacher_size=None, student_size=SIZE, vocabulary_size=9,
        samples=10, held_out_samples=0, steps=5, epochs=1.0, tokens=100, encoding="dense:f32", bytes_per_position=36,
        rows_per_run=90, bytes_per_run=3240, workers=1, workers_per_device=1, micro_shards=8, reduction="exact",
        device="cpu", memory=MEMORY,
        traffic_exact=0, traffic_fast=0, disk=DISK,
    )  # fmt: skip
    return replace(base, **changes)


def test_what_fits_is_let_be() -> None:
    check_fits(plan(), whole_disk=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": replace(MEMORY, free=31999)}, "reduction: fast needs 19.5 KiB and fits"),
        ({"workers": 3, "workers_per_device": 2}, r"free for each of 2 worker\(s\) there"),
        ({"memory": replace(MEMORY, free=19999)}, "reduction: exact does not fit.*take a smaller student"),
        ({"memory": replace(MEMORY, free=19999), "reduction": "fast"}, "reduction: fast does not fit"),
    ],
)
def test_too_little_memory_is_refused_with_fast_named_where_that_helps(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_fits(plan(**changes), whole_disk=False)


def test_a_start_needs_room_for_a_checkpoint_and_a_plan_for_all_that_is_kept() -> None:
    tight = plan(disk=replace(DISK, free=20000))
    check_fits(tight, whole_disk=False)
    with pytest.raises(ConfigurationError, match="output_dir: 3 checkpoints"):
        check_fits(tight, whole_disk=True)
    with pytest.raises(ConfigurationError, match="output_dir"):
        check_fits(plan(disk=replace(DISK, free=15999)), whole_disk=False)
    check_fits(plan(disk=replace(DISK, free=15999, written=24000)), whole_disk=False)
    check_fits(plan(disk=replace(DISK, free=None)), whole_disk=True)


def test_gpus_are_shared_out_evenly_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    values = {"teacher": "t:1", "output_dir": "run", "student": {"kind": "fixture"}, "data": {"sources": ["x"]}}

    def on(device: str, kind: str) -> int:
        return workers_per_device(Recipe.model_validate({**values, "device": device}), torch.device(kind), 5)

    assert [on("auto", "cuda"), on("cuda:1", "cuda:1"), on("auto", "cpu")] == [3, 5, 5]


def test_sizes_are_shown_for_people() -> None:
    assert [shown(size) for size in (0, 1023, 1536, 3 * 2**30)] == ["0 bytes", "1023 bytes", "1.5 KiB", "3.0 GiB"]
