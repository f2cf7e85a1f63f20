"""What a run has come to, to the bit: weights, optimiser, losses, samples. Knows nothing of how it came there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.torture.students.runs import Run

FIGURES = ("loss", "cross_entropy", "kl", "learning_rate", "grad_norm", "tokens")
"""What a line of metrics says of the step itself, and not of who did it and how quickly."""


@dataclass(frozen=True)
class Proof:
    """The end of a run that nobody disturbed, and what every other run must equal."""

    exported: dict[str, Tensor]
    checkpoint: dict[str, Tensor]
    steps: list[tuple[float, ...]]
    evaluations: list[dict[str, Any]]
    samples: list[list[int]]


def prove(run: Run, steps: int) -> Proof:
    """Read what a run left behind: each step's line stands there once, and each evaluation's."""
    result = json.loads((run.output / "result.json").read_text(encoding="utf-8"))
    assert (result["status"], result["steps"]) == ("done", steps), result
    records = run.records("step")
    _assert_each_once(records, steps)
    evaluations = run.records("evaluation")
    return Proof(
        exported=load_file(run.output / "export" / "model.safetensors"),
        checkpoint=load_file(run.output / f"checkpoint-{steps}" / "tensors.safetensors"),
        steps=[tuple(record[name] for name in FIGURES) for record in records],
        evaluations=evaluations,
        samples=samples_of(run.output, steps),
    )


def samples_of(output: Path, steps: int) -> list[list[int]]:
    """Return the samples of each committed step, from the log of samples, and see that each step stands there once."""
    records = [json.loads(line) for line in (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    _assert_each_once(records, steps)
    for record in records:
        assert [part["shard"] for part in record["shards"]] == list(range(len(record["shards"]))), record
        assert {part["rank"] for part in record["shards"]} <= set(range(record["world_size"])), record
    return [[int(sample) for part in record["shards"] for sample in part["sample_ids"]] for record in records]


def _assert_each_once(records: list[dict[str, Any]], steps: int) -> None:
    found = [record["step"] for record in records]
    assert found == list(range(1, steps + 1)), f"the lines are of steps {found}"


def assert_each_sample_once(samples: list[list[int]]) -> None:
    """See that every pass over the data has each sample once; the last pass may end early."""
    order = list(chain.from_iterable(samples))
    size = max(order) + 1
    assert len(order) > size, "more than one pass is to be seen"
    for start in range(0, len(order), size):
        one_pass = order[start : start + size]
        assert len(set(one_pass)) == len(one_pass), "a sample came twice"


def assert_same(run: Proof, reference: Proof) -> None:
    """See that two runs ended with the same bits, on the same samples, through the same losses."""
    assert run.steps == reference.steps, f"other figures in step {_first_difference(run.steps, reference.steps)}"
    assert run.samples == reference.samples, (
        f"other samples in step {_first_difference(run.samples, reference.samples)}"
    )
    assert run.evaluations == reference.evaluations, f"{run.evaluations}\nand not\n{reference.evaluations}"
    _assert_same_tensors(run.checkpoint, reference.checkpoint)
    _assert_same_tensors(run.exported, reference.exported)


def _first_difference(one: Sequence[object], other: Sequence[object]) -> str:
    return next((f"{i + 1}: {a} and not {b}" for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), "")


def _assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differ = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not differ, f"other bits in {differ}"
