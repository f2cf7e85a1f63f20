"""`stillhouse student train RECIPE --plan`: make the plan of a run, show it, and refuse what does not fit.

The teacher is asked for its description alone, or a store's manifest read; the corpus is prepared, and nothing is
written to the run's folder.
"""

from __future__ import annotations

import json
import sys
import threading

from rich.console import Console
from rich.table import Table

from stillhouse.disk import shown
from stillhouse.logs import configure_logging
from stillhouse.models import pick_device, silence_transformers
from student_worker.answering import Answering
from student_worker.planning.beforehand import check_beforehand
from student_worker.planning.checked import check_run
from student_worker.planning.model_size import ModelSize
from student_worker.planning.plan import Plan, check_fits, make_plan
from student_worker.planning.preflight import known_identity
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.output import check_output_dir, check_same_run
from student_worker.saving import check_checkpoints


def show_plan(recipe: Recipe, *, workers: int, as_json: bool) -> None:
    """Print the plan of a run on standard output.

    Raises:
        StillhouseError: whatever a start of the run would refuse; what is only too large is printed first.
    """
    check_output_dir(recipe)
    check_beforehand(recipe)
    configure_logging(worker=recipe.worker_index)
    silence_transformers()
    with Answering(recipe, threading.Event()) as answering:
        checked = check_run(recipe, answering.describe(), answering.stored)
        if recipe.smoke_steps is None:
            check_same_run(recipe, known_identity(recipe, checked))
            check_checkpoints(recipe)
        plan = make_plan(recipe, checked, pick_device(recipe.device), workers=workers)
    if as_json:
        sys.stdout.write(json.dumps(plan.as_json(), indent=2) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else 110).print(_table(plan))
    check_fits(plan, whole_disk=True)


def _table(plan: Plan) -> Table:
    table = Table(title=f"Plan of recipe {plan.recipe_hash}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    memory, disk = plan.memory, plan.disk
    for name, text in (
        ("teacher", f"{plan.teacher}: {_size(plan.teacher_size)}"),
        *([("store", f"{plan.store}: answers are read from it")] if plan.store else []),
        ("student", f"{_size(plan.student_size)}{_trained(plan)}{_against(plan)}"),
        ("vocabulary", f"{plan.vocabulary_size:,} shared ids"),
        ("data", f"{plan.samples:,} samples, {plan.held_out_samples:,} held out; fingerprint {plan.data_fingerprint}"),
        ("steps", f"{plan.steps:,}: {plan.epochs:.4g} epochs, {plan.tokens:,} tokens"),
        ("encoding", f"{plan.encoding}, {shown(plan.bytes_per_position)} a position"),
        ("answers", f"about {plan.rows_per_run:,} positions, {shown(plan.bytes_per_run)} in the run"),
        ("device", f"{plan.device}, {shown(memory.free)} free; {plan.workers} worker(s)"),
        ("memory", f"{shown(memory.needed(plan.reduction))} a worker, beside activations"),
        ("  weights", shown(memory.weights)),
        ("  gradient", shown(memory.gradient)),
        ("  AdamW", shown(memory.optimizer)),
        ("  sum, exact", f"{shown(memory.sum_exact)}{_chosen(plan, 'exact')}"),
        ("  sum, fast", f"{shown(memory.sum_fast)}{_chosen(plan, 'fast')}"),
        ("  teacher's head", shown(memory.head)),
        ("  answers held", f"{shown(memory.prefetched)} ahead at most, {shown(memory.held_out)} held out"),
        ("  checkpoint's copy", f"{shown(disk.checkpoint)} of the host's memory, where so much is free"),
        ("traffic, exact", f"{shown(plan.traffic_exact)} a worker and step{_chosen(plan, 'exact')}"),
        ("traffic, fast", f"{shown(plan.traffic_fast)} a worker and step{_chosen(plan, 'fast')}"),
        ("disk", f"{shown(disk.needed)} more, {'unknown' if disk.free is None else shown(disk.free)} free"),
        ("  checkpoints", f"{disk.checkpoints} of {shown(disk.checkpoint)}"),
        ("  exports", shown(disk.exports)),
    ):
        table.add_row(name, text)
    return table


def _size(size: ModelSize | None) -> str:
    if size is None:
        return "its size is not known here"
    flops = "" if size.flops_per_token is None else f", {size.flops_per_token:,} FLOPs forward per token"
    return f"{size.parameters:,} parameters{flops}"


def _trained(plan: Plan) -> str:
    size = plan.student_size
    return "" if size.trained_parameters == size.parameters else f", {size.trained_parameters:,} of them trained"


def _against(plan: Plan) -> str:
    if plan.teacher_size is None:
        return ""
    ratios = [f"{plan.student_size.parameters / plan.teacher_size.parameters:.0%} of its teacher's parameters"]
    if plan.student_size.flops_per_token and plan.teacher_size.flops_per_token:
        ratios.append(f"{plan.student_size.flops_per_token / plan.teacher_size.flops_per_token:.0%} of its FLOPs")
    return f"; {', '.join(ratios)}"


def _chosen(plan: Plan, reduction: str) -> str:
    return "  <- reduction" if plan.reduction == reduction else ""
