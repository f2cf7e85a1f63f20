"""One worker's run from its recipe to its exit code: connect, check, resume, train, write down, export.

SIGTERM and SIGINT let the step under way finish, write a checkpoint and end with 143.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import structlog

from stillhouse.cli.main import EXIT_DONE, EXIT_INTERRUPTED
from stillhouse.data import Sample
from stillhouse.encoding_text import format_encoding
from stillhouse.errors import CheckpointError, GuardError, StillhouseError, StoreError, TeacherError
from stillhouse.logs import configure_logging
from stillhouse.models import pick_device, silence_transformers
from stillhouse.stopping import stop_on_signals
from stillhouse.tracing import configure_tracing
from student_worker import assemble
from student_worker.answering import Answering
from student_worker.app import HttpServer, bind, build_app
from student_worker.cadence import Cadence
from student_worker.callbacks.base import Callback
from student_worker.callbacks.choose import make_callbacks
from student_worker.determinism import only_deterministic_kernels
from student_worker.elastic.elastic_group import GroupLostError
from student_worker.elastic.reduction import gradient_sum
from student_worker.elastic.threads import settle_threads
from student_worker.fetching_ahead import prefetch_steps
from student_worker.metrics import WorkerMetrics
from student_worker.page.page import RunPage
from student_worker.parts import Outcome, Parts, SavesNothing
from student_worker.patience import Interrupted, TeacherAwayError
from student_worker.planning.beforehand import check_beforehand
from student_worker.planning.preflight import Ready, identity, prepare_run
from student_worker.recipe.schema import Recipe
from student_worker.result import make_result
from student_worker.run_folder.facts import collect_facts, device_facts
from student_worker.run_folder.journal import SAMPLES_FILE, Journal, write_result
from student_worker.run_folder.output import (
    announce,
    check_output_dir,
    claim,
    has_begun,
    own_folder,
    stopped_for,
    wait_for_siblings,
    warn_of_another_loss,
    worker_facts,
)
from student_worker.run_folder.output_proof import prove
from student_worker.run_folder.receipt import Receipt
from student_worker.saving import RunSaving, goes_on, open_store
from student_worker.smoke import project
from student_worker.state import WorkerState
from student_worker.trainer import Trainer

EXIT_START_AGAIN = 1
"""As after a crash: a launcher or Kubernetes starts the worker anew, and it heals from its peers."""

_log = structlog.get_logger(__name__)


def run(recipe: Recipe) -> int:
    """Run one worker; return the exit code.

    Raises:
        StillhouseError: what stopped the run; the committed steps are in a checkpoint, if there were any.
    """
    check_output_dir(recipe)
    recipe = own_folder(recipe)
    check_beforehand(recipe)
    configure_logging(worker=recipe.worker_index)
    end_tracing = configure_tracing("stillhouse-student")
    silence_transformers()
    settle_threads(recipe)
    if recipe.full_determinism:
        only_deterministic_kernels()
    stopping = threading.Event()
    with ExitStack() as open_parts, stop_on_signals(stopping):
        open_parts.callback(end_tracing)
        try:
            return _Run(recipe, stopping, open_parts).run()
        except Interrupted:
            return EXIT_INTERRUPTED
        except GroupLostError as error:
            _log.error("group_lost", reason=str(error))
            return EXIT_START_AGAIN
        except TeacherAwayError as error:
            if not has_begun(recipe):
                raise  # an address where nobody has ever answered is a wrong one, as far as anybody can tell
            _log.error("teacher_away", reason=str(error))
            return EXIT_START_AGAIN


class _Run:
    """The life of one worker."""

    def __init__(self, recipe: Recipe, stopping: threading.Event, open_parts: ExitStack) -> None:
        self._recipe = recipe
        self._stopping = stopping
        self._open_parts = open_parts
        self._metrics = WorkerMetrics()
        self._is_training = threading.Event()
        self._began = time.time()
        # Only workers of one launcher are sure to share a host's ports.
        port = recipe.http_port + (recipe.worker_index if recipe.http_port and recipe.local_workers > 1 else 0)
        self._page = RunPage(recipe, self._metrics, self._is_training.is_set)
        http_token = recipe.http_token.get_secret_value() if recipe.http_token else None
        app = build_app(self._metrics.registry, self._is_training.is_set, self._page, http_token)
        self._server = HttpServer(app, bind(recipe.http_host, port))
        open_parts.callback(self._server.close)
        self._answering = open_parts.enter_context(Answering(recipe, stopping))
        self._answering.on_answer = self._metrics.answered

    def run(self) -> int:
        recipe, answering = self._recipe, self._answering
        ready = prepare_run(recipe, answering.describe(), pick_device(recipe.device), answering.stored)
        optimizer = assemble.make_optimizer(recipe, ready)
        state = WorkerState(ready.student.module, optimizer, identity(recipe, ready))
        claim(recipe, state.identity)
        head = assemble.fetch_head(ready, answering)
        assemble.warm_up(recipe, ready)
        best = assemble.make_best(recipe, ready)
        awaits_best = recipe.load_best_model_at_end and recipe.lighthouse is not None
        saving = RunSaving(
            open_store(recipe),
            state,
            best.metric if best else None,
            background=recipe.save_in_background,
            awaits_best=awaits_best,
        )
        self._open_parts.callback(saving.close)
        facts, device = collect_facts(recipe, ready, state.identity), ready.student.device
        metric = recipe.metric_for_best_model
        self._receipt = Receipt(recipe.output_dir, facts, state, metric, lambda: worker_facts(recipe), answering.counts)
        if recipe.smoke_steps is None:
            saving.resume(goes_on=goes_on(recipe))
        if recipe.export_initial and state.step == 0 and recipe.worker_index == 0:
            ready.student.export(recipe.output_dir / "initial", assemble.model_card(recipe, ready, 0))
        prefetcher = assemble.make_prefetcher(recipe, ready, answering, self._stopping)
        self._open_parts.callback(prefetcher.close)
        cadence = assemble.make_cadence(recipe, ready)
        callbacks = [
            *make_callbacks(recipe, cadence, evaluates=best is not None),
            self._receipt,
            *self._watchers(ready),
        ]
        n = optimizer.num_parameters
        trainer = Trainer(
            Parts(
                student=ready.student,
                optimizer=optimizer,
                state=state,
                steps=ready.steps,
                prefetcher=prefetcher,
                evaluator=assemble.make_evaluator(recipe, ready, answering, head, self._stopping),
                group=self._open_parts.enter_context(assemble.make_group(recipe, state, ready, self._stopping)),
                tree=gradient_sum(recipe.reduction, recipe.micro_shards, n, device),
                objective=assemble.make_objective(recipe, ready, head),
                schedule=assemble.make_schedule(recipe, ready),
                cadence=cadence,
                view=assemble.make_view(recipe, state, cadence),
                stopping=self._stopping,
                metrics=self._metrics,
                callbacks=callbacks,
                saving=saving if recipe.smoke_steps is None else SavesNothing(),
                best=best,
                sample_log=Journal(recipe.output_dir, SAMPLES_FILE) if recipe.sample_log else None,
                max_loss=recipe.max_loss,
                stopped=stopped_for(recipe, state.step),
                seed=recipe.seed,
                prefetch_steps=prefetch_steps(recipe, ready.teacher, device),
                autocast=recipe.precision == "bfloat16",
                part_size=recipe.per_device_train_batch_size,
            )
        )
        here = device_facts(device)
        warn_of_another_loss(recipe, here["loss"])
        announce(recipe, self._server.address, here)
        if recipe.worker_index == 0:
            self._receipt.begin()
        self._say_start(ready, state)
        self._is_training.set()
        if not wait_for_siblings(recipe, self._stopping):
            _log.warning("starting_without_all_workers", expected=recipe.local_workers)
        try:
            outcome = trainer.run()
            return self._end(ready, state, outcome, saving, cadence)
        except Exception as error:
            if trainer.outcome.is_first:
                self._fail(ready, state, trainer.outcome, saving, error)
            raise

    def _watchers(self, ready: Ready) -> list[Callback]:
        """Return what the live page is told by."""
        facts = {
            "Student": ready.description,
            "Teacher": ready.teacher.model,
            "Encoding": format_encoding(ready.asking.encoding),
            "Objective": f"alpha {self._recipe.alpha:g} (weight of cross-entropy), T = {self._recipe.temperature:g}",
        }

        def first_samples() -> list[Sample]:
            return [one for shard in range(ready.steps.micro_shards) for one in ready.steps.shard(0, shard)]

        return self._page.watch(ready.student, first_samples, facts)

    def _say_start(self, ready: Ready, state: WorkerState) -> None:
        _log.info(
            "training",
            http=self._server.address,
            teacher=ready.teacher.model,
            store=ready.store,
            student=ready.description,
            student_parameters=ready.student.num_parameters,
            teacher_parameters=ready.teacher_parameters,
            student_flops_per_token=ready.student_size.flops_per_token,
            teacher_flops_per_token=ready.teacher_size.flops_per_token if ready.teacher_size else None,
            vocabulary_size=ready.vocabulary_size,
            encoding=format_encoding(ready.asking.encoding),
            samples=len(ready.corpus.train),
            held_out_samples=len(ready.corpus.held_out) if ready.corpus.held_out else 0,
            from_step=state.step,
            steps=ready.num_steps,
        )

    def _end(self, ready: Ready, state: WorkerState, outcome: Outcome, saving: RunSaving, cadence: Cadence) -> int:
        """Write what the run came to: the first worker writes, the others only leave."""
        recipe = self._recipe
        code = EXIT_INTERRUPTED if outcome.interrupted else EXIT_DONE
        if not outcome.is_first:
            return code
        result = make_result(recipe, ready, state, outcome) | {"started": self._began}
        if recipe.smoke_steps is not None:
            projection = project(cadence, outcome)
            _log.info("smoke", **projection)
            write_result(recipe.output_dir, result | {"smoke": projection, "ended": time.time()})
            self._receipt.close("interrupted" if outcome.interrupted else "smoke", outcome.reason)
            return code
        saving.save(background=False)
        saving.saved(wait=True)
        result |= {"best": saving.best()}
        proof = None
        if not outcome.interrupted:
            step = saving.load_best() if recipe.load_best_model_at_end else state.step
            ready.student.export(recipe.output_dir / "export", assemble.model_card(recipe, ready, step))
            result["exported_step"] = step
            proof = prove(recipe.output_dir / "export")
        write_result(recipe.output_dir, result | {"ended": time.time()})
        self._receipt.close(outcome.status, outcome.reason, proof)
        return code

    def _fail(self, ready: Ready, state: WorkerState, outcome: Outcome, saving: RunSaving, error: Exception) -> None:
        """Keep the steps that are done, and write what ended the run; that error is the one to be heard of."""
        starts_again = isinstance(error, GroupLostError | TeacherAwayError)
        outcome.status = "interrupted" if starts_again else "failed"
        outcome.reason = str(error) if isinstance(error, StillhouseError) else f"{type(error).__name__}: {error}"
        try:
            if isinstance(error, GuardError | StoreError | TeacherError) and self._recipe.smoke_steps is None:
                saving.save(background=False)
                saving.saved(wait=True)
            write_result(self._recipe.output_dir, self._failed(ready, state, outcome, saving))
        except CheckpointError as refused:
            _log.error("not_written", reason=str(refused))
        try:
            self._receipt.close(outcome.status, outcome.reason)
        except CheckpointError as refused:
            _log.error("not_written", reason=str(refused))

    def _failed(self, ready: Ready, state: WorkerState, outcome: Outcome, saving: RunSaving) -> dict[str, Any]:
        result = make_result(self._recipe, ready, state, outcome)
        return result | {"started": self._began, "ended": time.time(), "best": saving.best()}
