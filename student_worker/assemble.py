"""Puts a run's parts together, as its recipe says."""

from __future__ import annotations

import json
import socket
import threading

import torch

from stillhouse.encoding_text import format_encoding
from stillhouse.errors import ConfigurationError
from stillhouse.kd.divergences import Divergence
from stillhouse.kd.kernels import compile_ahead
from stillhouse.payloads import OutputHead
from stillhouse.version import __version__
from student_worker.answering import Answering
from student_worker.cadence import Cadence
from student_worker.callbacks import RunView
from student_worker.callbacks.best import BestSoFar
from student_worker.elastic.elastic_group import ElasticGroup
from student_worker.elastic.group import Group, SoloGroup
from student_worker.elastic.network import split_address
from student_worker.evaluation.evaluate import Evaluator, row_bytes
from student_worker.optimizer import StudentOptimizer
from student_worker.planning.preflight import Ready
from student_worker.prefetch import Key, Piece, Prefetcher
from student_worker.progress import report_progress
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.journal import read_result
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective
from student_worker.state import WorkerState
from student_worker.students.base import ModelCard


def make_optimizer(recipe: Recipe, ready: Ready) -> StudentOptimizer:
    """Return AdamW over the student."""
    return StudentOptimizer(
        ready.student.module,
        weight_decay=recipe.weight_decay,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
    )


def check_group(recipe: Recipe) -> None:
    """Refuse, before anything is written, what no group could be made of.

    Raises:
        ConfigurationError: a lighthouse whose address or whose run's token cannot be used.
    """
    if recipe.lighthouse is None:
        return
    split_address(recipe.lighthouse)
    if recipe.run_token is None:
        raise ConfigurationError("run_token is missing: set STUDENT_RUN_TOKEN, the same for every worker of the run")


def described(recipe: Recipe, state: WorkerState, ready: Ready) -> dict[str, str]:
    """Return what every worker of a run must agree on, by names that a refusal can use."""
    # Whether they come from a teacher at work or from a store of its answers: to the bit they are the same.
    told = {"release": __version__, **state.identity, "teacher's answers": ready.teacher.fingerprint}
    for key, value in recipe.result_keys().items():
        parts = {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
        told |= {name: json.dumps(part) for name, part in parts.items()}
    return told


def make_group(recipe: Recipe, state: WorkerState, ready: Ready, stopping: threading.Event) -> Group:
    """Return the workers that train together: this one alone, or those that meet at the lighthouse."""
    if recipe.lighthouse is None:
        return SoloGroup(state, step=state.step)
    assert recipe.run_token is not None  # noqa: S101 - check_group has seen it
    return ElasticGroup(
        state,
        lighthouse=recipe.lighthouse,
        worker_id=f"{socket.gethostname()}-{recipe.worker_index}",
        token=recipe.run_token.get_secret_value(),
        run=described(recipe, state, ready),
        max_workers=recipe.micro_shards,
        step=state.step,
        device=ready.student.device,
        timeout_seconds=recipe.step_timeout_seconds,
        stopping=stopping,
        on_commit=report_progress,
    )


def warm_up(recipe: Recipe, ready: Ready) -> None:
    """Do what would hold up the first step (compile student and loss), before any other worker waits for this one."""
    shard = -(-recipe.global_batch_size // recipe.micro_shards)
    size = min(shard, recipe.per_device_train_batch_size or shard)
    ready.student.warm_up(size, ready.corpus.train.block_size, autocast=recipe.precision == "bfloat16")
    encoding, temperature = (ready.asking.encoding, recipe.temperature) if recipe.alpha < 1 else (None, 1.0)
    compile_ahead(ready.student.device, encoding, temperature)


def make_prefetcher(recipe: Recipe, ready: Ready, answering: Answering, stopping: threading.Event) -> Prefetcher:
    """Return what fetches the answers of the coming micro-shards."""
    bytes_of_row = row_bytes(ready.asking.encoding, ready.vocabulary_size, ready.teacher.hidden_size)

    def piece(key: Key) -> Piece:
        if recipe.alpha == 1:
            return Piece(None, 0)  # cross-entropy alone: there is nothing to ask
        step, shard = key
        places = [("train", index) for index in ready.steps.shard_ids(step)[shard]]
        request = ready.asking.request(ready.steps.shard(step, shard), places)
        return Piece(request if request.sequences else None, request.num_positions * bytes_of_row)

    return Prefetcher(answering, piece, max_bytes=recipe.prefetch_bytes, stopping=stopping)


def fetch_head(ready: Ready, answering: Answering) -> OutputHead | None:
    """Return the teacher's output head on the student's device, None where nothing is rebuilt with it.

    Raises:
        TeacherError: the teacher stayed away, or has become another.
    """
    if not ready.fetches_head:
        return None
    return answering.output_head().to(dtype=torch.float32, device=ready.student.device)


def make_evaluator(
    recipe: Recipe, ready: Ready, answering: Answering, head: OutputHead | None, stopping: threading.Event
) -> Evaluator | None:
    """Return what evaluates on the held-out part, None where there is none or it is never wanted."""
    if ready.corpus.held_out is None or not evaluates(recipe, ready):
        return None
    return Evaluator(
        ready.corpus.held_out,
        answering.answer,
        ready.eval_asking,
        recipe.eval_memory_bytes,
        head,
        recipe.alpha,
        Divergence(recipe.loss, recipe.jsd_beta),
        stopping,
    )


def evaluates(recipe: Recipe, ready: Ready) -> bool:
    """Tell whether the run has anything held out, and looks at it."""
    return ready.corpus.held_out is not None and recipe.eval_steps != 0


def make_objective(recipe: Recipe, ready: Ready, head: OutputHead | None) -> Objective:
    """Return what is minimised."""
    return Objective(
        temperature=recipe.temperature,
        alpha=recipe.alpha,
        vocabulary_size=ready.vocabulary_size,
        top_k_tail=recipe.top_k_tail,
        output_head=head,
        loss=recipe.loss,
        jsd_beta=recipe.jsd_beta,
    )


def make_schedule(recipe: Recipe, ready: Ready) -> Schedule:
    """Return the learning rate by step."""
    return Schedule(recipe.learning_rate, recipe.warmup_steps, ready.num_steps, recipe.lr_scheduler_type)


def make_cadence(recipe: Recipe, ready: Ready) -> Cadence:
    """Return how often the run does what."""
    return Cadence(ready.num_steps, recipe.logging_steps, recipe.eval_steps, recipe.save_steps, recipe.smoke_steps)


def make_view(recipe: Recipe, state: WorkerState, cadence: Cadence) -> RunView:
    """Return what callbacks are told of the run."""
    return RunView(
        output_dir=recipe.output_dir,
        name=recipe.run_name or recipe.output_dir.resolve().name,
        step=state.step,
        max_steps=cadence.max_steps,
        is_first=recipe.worker_index == 0 or _is_to_be_ended(recipe, state, cadence),
        recipe=recipe.model_dump(mode="json"),
        identity=state.identity,
    )


def _is_to_be_ended(recipe: Recipe, state: WorkerState, cadence: Cadence) -> bool:
    """Tell whether all steps are done, and whoever did the last was killed before it had written what came of them."""
    if state.step < cadence.last_step:
        return False
    result = read_result(recipe.output_dir) or {}
    return (result.get("status"), result.get("steps")) != ("done", state.step)


def make_best(recipe: Recipe, ready: Ready) -> BestSoFar | None:
    """Return what remembers the best evaluation, None where nothing is evaluated."""
    return BestSoFar(recipe.metric_for_best_model) if evaluates(recipe, ready) else None


def model_card(recipe: Recipe, ready: Ready, step: int) -> ModelCard:
    """Return what the export says of its origin."""
    return ModelCard(
        teacher=f"{ready.teacher.model} (weights {ready.teacher.weights_fingerprint})",
        data=f"{', '.join(recipe.data.sources) or 'the samples of a store'} "
        f"(fingerprint {ready.corpus.train.fingerprint})",
        license=recipe.license,
        facts={
            "Student": ready.description,
            "Steps": f"{step} of {ready.num_steps}, {recipe.global_batch_size} samples each",
            "Objective": f"alpha {recipe.alpha} (weight of cross-entropy), T {recipe.temperature}, "
            f"{format_encoding(ready.asking.encoding)}",
            "Recipe": recipe.hash,
        },
    )
