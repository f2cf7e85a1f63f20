"""What a run came to, as result.json holds it."""

from __future__ import annotations

from typing import Any

from stillhouse.version import __version__
from student_worker.parts import Outcome
from student_worker.planning.preflight import Ready
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.output import read_evaluations
from student_worker.state import WorkerState


def make_result(recipe: Recipe, ready: Ready, state: WorkerState, outcome: Outcome) -> dict[str, Any]:
    """Return everything but what is known only after the export."""
    sizes = {"teacher": ready.teacher_size, "student": ready.student_size}
    has_export = outcome.status not in ("interrupted", "failed") and recipe.smoke_steps is None
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "version": __version__,
        "teacher": ready.teacher.model,
        "teacher_parameters": ready.teacher_parameters,
        "student": ready.description,
        "student_parameters": ready.student.num_parameters,
        "flops_per_token": {name: size.flops_per_token if size else None for name, size in sizes.items()},
        "dropped_layers": list(ready.dropped_layers),
        "vocabulary_size": ready.vocabulary_size,
        "steps": state.step,
        "max_steps": ready.num_steps,
        "tokens": state.num_tokens,
        "loss": outcome.losses.loss if outcome.losses else None,
        "evaluations": read_evaluations(recipe.output_dir),
        "recipe": recipe.result_keys(),
        "identity": state.identity,
        "export_dir": str(recipe.output_dir / "export") if has_export else None,
    }
