"""What a comparison came to: each arm's figures and curve, and whether they may be compared at all.

Read from what the runs wrote, so that it is the same after an interruption. Losses in nats, times in seconds of
training alone (evaluations and checkpoints left out), bytes as they came from the teacher.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from stillhouse.errors import GuardError
from stillhouse.version import __version__
from student_worker.comparison.arms import CROSS_ENTROPY, Arm
from student_worker.comparison.running import read_result
from student_worker.run_folder.journal import Journal

FIGURES = ("cross_entropy", "perplexity", "kl", "agreement")
MUST_AGREE = ("data", "teacher", "vocabulary size")


def read_outcome(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the comparison as JSON holds it; every arm is complete.

    Raises:
        GuardError: arms that did not begin alike, or were not given the same.
    """
    read = [_read_arm(arm) for arm in arms]
    results = {arm.title: read_result(arm) or {} for arm in arms}
    first = results[arms[0].title]
    for arm in arms:
        theirs = results[arm.title]["identity"]
        for key in MUST_AGREE:
            if theirs.get(key) != first["identity"].get(key):
                raise GuardError(
                    f"the arms cannot be compared: the {key} of {arm.title} is {theirs.get(key)}, and that of "
                    f"{arms[0].title} {first['identity'].get(key)}; begin anew in another --output-dir"
                )
    _check_starts(read)
    return {
        "version": __version__,
        "teacher": first.get("teacher"),
        "teacher_parameters": first.get("teacher_parameters"),
        "student": first.get("student"),
        "student_parameters": first.get("student_parameters"),
        "data": first["identity"].get("data"),
        "alpha": arms[-1].recipe.alpha,
        "temperature": arms[-1].recipe.temperature,
        "seeds": sorted({arm.seed for arm in arms}),
        "teacher_figures": {
            name: read[0]["start"].get(f"{name}_teacher") for name in FIGURES if f"{name}_teacher" in read[0]["start"]
        },
        "arms": read,
        "summary": summarise(read),
    }


def summarise(read: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line an arm: means over its seeds, and how far they spread where there are several."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for arm in read:
        by_name[arm["name"]].append(arm)
    lines = []
    for name, same in by_name.items():
        line: dict[str, Any] = {"name": name, "seeds": len(same)}
        for figure in FIGURES:
            values = [arm["final"][figure] for arm in same if arm["final"].get(figure) is not None]
            line[figure] = mean(values) if values else None
            line[f"{figure}_spread"] = stdev(values) if len(values) > 1 else None
        for figure in ("steps", "tokens", "training_seconds", "teacher_wait_seconds", "answer_bytes"):
            line[figure] = mean([arm[figure] for arm in same])
        line["bytes_per_token"] = line["answer_bytes"] / line["tokens"]
        lines.append(line)
    return lines


def verdict(outcome: dict[str, Any]) -> str:
    """Say in one sentence whether distillation helped, whatever the answer is."""
    plain, *distilled = outcome["summary"]
    best = min(distilled, key=lambda line: float(line["cross_entropy"]))
    gain = plain["cross_entropy"] - best["cross_entropy"]
    how = "lower" if gain > 0 else "higher"
    return (
        f"After {plain['steps']:.0f} steps on the same tokens, the held-out cross-entropy of the best distilled "
        f"student ({best['name']}) is {abs(gain):.3f} nats {how} than that of the one trained on the text alone: "
        f"perplexity {best['perplexity']:.1f} against {plain['perplexity']:.1f}."
    )


def _read_arm(arm: Arm) -> dict[str, Any]:
    records = Journal(arm.folder).read()
    steps = [record for record in records if record["event"] == "step"]
    evaluations = [record for record in records if record["event"] == "evaluation"]
    seconds = {record["step"]: record["step_seconds"] for record in steps}
    curve = [
        {
            "step": record["step"],
            "seconds": sum(spent for step, spent in seconds.items() if step <= record["step"]),
            **{name: value for name, value in record.items() if name not in ("event", "step")},
        }
        for record in evaluations
    ]
    return {
        "name": arm.name,
        "seed": arm.seed,
        "alpha": arm.recipe.alpha,
        "recipe": arm.recipe.hash,
        "folder": arm.folder.name,
        "steps": len(steps),
        "tokens": sum(record["tokens"] for record in steps),
        "training_seconds": sum(seconds.values()),
        "teacher_wait_seconds": sum(record["teacher_wait_seconds"] for record in steps),
        "answer_bytes": sum(record.get("answer_bytes", 0) for record in steps),
        "start": curve[0],
        "final": curve[-1],
        "curve": curve,
    }


def _check_starts(read: Sequence[dict[str, Any]]) -> None:
    """See that arms of one seed had the same figures, to the bit, before their first step."""
    starts: dict[int, dict[str, Any]] = {}
    for arm in read:
        start = {name: arm["start"].get(name) for name in FIGURES}
        if arm["start"]["step"] != 0 or starts.setdefault(arm["seed"], start) != start:
            raise GuardError(
                f"the arms of seed {arm['seed']} did not begin alike ({CROSS_ENTROPY}: {starts.get(arm['seed'])}, "
                f"{arm['name']}: {start}); begin anew in another --output-dir"
            )
