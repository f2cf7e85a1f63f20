"""Runs the demonstration: teacher service, student workers, a second pass, continuations, the report.

Every part is the real one, as a process of its own: this module only starts them, watches and writes down.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from stillhouse.demo.curves import agreement_curve, cache_bars, loss_curve, time_curve
from stillhouse.demo.measures import MetricsTail, TeacherCounters, read_teacher
from stillhouse.demo.memory import MemoryPeak
from stillhouse.demo.progress import PassProgress
from stillhouse.demo.report import Continuation, Report, write_report
from stillhouse.demo.voices import PROMPTS, continue_prompts
from stillhouse.errors import ConfigurationError, GuardError, StillhouseError
from stillhouse.processes import Child

MARKER = ".stillhouse-demo"
"""Stands in a folder that the demonstration made, and may therefore replace."""

CONVERSION_SECONDS = 600.0
TEACHER_READY_SECONDS = 300.0
PASS_SECONDS = 3600.0
POLL_SECONDS = 0.25
SECONDS_PER_MEMORY_SAMPLE = 2.0
STOP_GRACE_SECONDS = 20.0

BLOCK_TOKENS = 64
BATCH_BLOCKS = 8
HELD_OUT_BLOCKS = 24
WARMUP_STEPS = 5
STEPS_PER_EVALUATION = 10
LEARNING_RATE = 8e-4
TOP_K = 256
"""Keeps 0.95 of the teacher's mass at T = 1, in 1.6 KB a position where every logit in float32 takes 197 KB."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the command line chose."""

    output_dir: Path
    steps: int
    second_pass_steps: int
    workers: int
    teacher: str
    keep_layers: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one training pass left behind."""

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    counters: TeacherCounters


def run_demo(settings: DemoSettings) -> None:
    """Run it from start to end; Ctrl-C at any moment leaves no process behind.

    Raises:
        ConfigurationError: a folder that is not the demonstration's own, or a part that is not installed.
        StillhouseError: a part failed; the message holds the end of its log.
    """
    console = Console()
    started = time.monotonic()
    folder = _fresh_folder(settings.output_dir)
    memory = MemoryPeak()
    with ExitStack() as parts:
        teacher_folder = _teacher_folder(settings, folder, console)
        address = _start_teacher(settings, folder, parts, console)
        first = _train(settings, folder, "first", settings.steps, address, memory, console)
        second = _train(settings, folder, "second", settings.second_pass_steps, address, memory, console)
    console.print("Continuing the same prompts with teacher, student before and student after ...")
    run = folder / "first"
    report = _report(settings, folder, first, second, memory, _continuations(teacher_folder, run), started)
    curves = (
        loss_curve(first.steps, first.evaluations),
        agreement_curve(first.evaluations),
        time_curve(first.steps),
        cache_bars(_asked(first.counters), _asked(second.counters)),
    )
    page = write_report(report, curves, folder)
    _tell(report, page, console)


def _fresh_folder(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ConfigurationError(
                f"--output-dir {folder} holds something that the demo did not make; name an empty folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder.resolve()


def _teacher_folder(settings: DemoSettings, folder: Path, console: Console) -> Path:
    from stillhouse.models import resolve_model

    console.print(f"Teacher: {settings.teacher} (a GGUF file is converted once; that takes about 20 seconds)")
    # First in a process of its own, since a conversion leaves a gigabyte behind in the one that makes it. Whether it
    # went well is asked here: then nothing is left to do, and otherwise the same error comes again and is told.
    resolve = "import sys; from stillhouse.models import resolve_model; resolve_model(sys.argv[1])"
    argv = [sys.executable, "-c", resolve, settings.teacher]
    with Child("conversion", argv, folder / "logs" / "conversion.log") as child:
        child.wait(CONVERSION_SECONDS)
    return resolve_model(settings.teacher)


def _start_teacher(settings: DemoSettings, folder: Path, parts: ExitStack, console: Console) -> dict[str, str]:
    ready = folder / "teacher.json"
    argv = [sys.executable, "-m", "teacher_service", "serve", "--backend", "transformers", "--model", settings.teacher]
    argv += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    child = parts.enter_context(Child("teacher", argv, folder / "logs" / "teacher.log"))
    deadline = time.monotonic() + TEACHER_READY_SECONDS
    while not ready.exists():
        if child.poll() is not None or time.monotonic() > deadline:
            raise StillhouseError(f"the teacher did not become ready:\n{child.tail()}")
        time.sleep(POLL_SECONDS)
    address: dict[str, str] = json.loads(ready.read_text(encoding="utf-8"))
    console.print(f"Teacher ready: gRPC {address['grpc']}, {address['http']}, with an embedded Valkey as its cache")
    return address


def _train(
    settings: DemoSettings,
    folder: Path,
    name: str,
    steps: int,
    address: dict[str, str],
    memory: MemoryPeak,
    console: Console,
) -> PassResult:
    run = folder / name
    is_first = name == "first"
    argv = [sys.executable, "-m", "student_worker", "train", "--workers", str(settings.workers)]
    argv += ["--teacher", address["grpc"], "--output-dir", str(run), "--http-port", "0"]
    argv += ["--data", "builtin:pydoc-topics", "--block-size", str(BLOCK_TOKENS)]
    argv += ["--held-out-samples", str(HELD_OUT_BLOCKS)]
    argv += ["--model", settings.teacher, "--keep-layers", settings.keep_layers]
    argv += ["--max-steps", str(steps), "--global-batch-size", str(BATCH_BLOCKS), "--encoding", f"top_k:{TOP_K}"]
    argv += ["--micro-shards", str(_micro_shards(settings.workers)), "--temperature", "1", "--alpha", "0"]
    argv += [
        "--learning-rate",
        str(LEARNING_RATE),
        "--warmup-steps",
        str(min(WARMUP_STEPS, steps)),
        "--save-steps",
        str(steps),
    ]
    if is_first:
        # A laptop has more time for the checkpoints of its best evaluations than memory for copies of them.
        argv += ["--no-save-in-background"]
        argv += ["--eval-steps", str(STEPS_PER_EVALUATION), "--eval-encoding", "dense:f16", "--export-initial"]
    else:
        argv += ["--eval-steps", "0"]
    if settings.teacher == "smollm2":
        # The licence of the weights and of the text (Python's documentation) that the student comes from.
        argv += ["--license", "apache-2.0 (weights), PSF-2.0 (text)"]
    before = read_teacher(address["http"])
    counters = TeacherCounters()
    tail = MetricsTail(run / "metrics.jsonl")
    deadline = time.monotonic() + PASS_SECONDS
    next_sample = 0.0
    with (
        PassProgress(console, f"{name} pass", steps) as progress,
        Child(f"students of the {name} pass", argv, folder / "logs" / f"students-{name}.log") as child,
    ):
        status = None
        while status is None:
            status = child.wait(POLL_SECONDS)
            if time.monotonic() > next_sample:
                next_sample = time.monotonic() + SECONDS_PER_MEMORY_SAMPLE
                memory.sample()
            counters = read_teacher(address["http"]).since(before)
            for record in tail.read():
                if record.get("event") == "step":
                    progress.update(record, counters)
            if time.monotonic() > deadline:
                raise StillhouseError(f"the {name} pass did not end within {PASS_SECONDS:.0f} s:\n{child.tail()}")
        if status != 0:
            kind = GuardError if status == 3 else StillhouseError
            raise kind(f"the {name} pass ended with exit code {status}:\n{child.tail()}")
    return PassResult(tail.of("step"), tail.of("evaluation"), counters)


def _micro_shards(workers: int) -> int:
    """The smallest power of two with a part of every batch for each worker: fewer parts are larger, and quicker."""
    return 1 << (workers - 1).bit_length()


def _continuations(teacher: Path, run: Path) -> tuple[Continuation, ...]:
    voices = [continue_prompts(folder) for folder in (teacher, run / "initial", run / "export")]
    return tuple(Continuation(*row) for row in zip(PROMPTS, *voices, strict=True))


def _asked(counters: TeacherCounters) -> tuple[float, float]:
    return counters.cache_misses, counters.cache_hits


def _report(
    settings: DemoSettings,
    folder: Path,
    first: PassResult,
    second: PassResult,
    memory: MemoryPeak,
    continuations: tuple[Continuation, ...],
    started: float,
) -> Report:
    result = json.loads((folder / "first" / "result.json").read_text(encoding="utf-8"))
    before, after = first.evaluations[0], first.evaluations[-1]
    tokens = sum(record["tokens"] for record in first.steps)
    return Report(
        teacher=settings.teacher,
        student=result["student"],
        student_parameters=result["student_parameters"],
        teacher_parameters=result["teacher_parameters"],
        dropped_layers=tuple(result["dropped_layers"]),
        workers=settings.workers,
        steps=len(first.steps),
        tokens_per_step=BATCH_BLOCKS * BLOCK_TOKENS,
        encoding=f"top_k:{TOP_K}",
        temperature=1.0,
        alpha=0.0,
        kl_before=before["kl"],
        kl_after=after["kl"],
        agreement_before=before["agreement"],
        agreement_after=after["agreement"],
        perplexity_before=before["perplexity"],
        perplexity_after=after["perplexity"],
        perplexity_teacher=after["perplexity_teacher"],
        teacher_forward_tokens=int(first.counters.forward_tokens),
        cache_hit_ratio_second_pass=second.counters.hit_ratio,
        teacher_forward_tokens_second_pass=int(second.counters.forward_tokens),
        training_tokens_per_second=tokens / sum(record["step_seconds"] for record in first.steps),
        peak_memory_gib=memory.gib,
        export_dir=os.path.relpath(folder / "first" / "export"),
        seconds=time.monotonic() - started,
        continuations=continuations,
    )


def _tell(report: Report, page: Path, console: Console) -> None:
    console.print()
    console.print(f"held-out KL to the teacher  {report.kl_before:8.2f} -> {report.kl_after:.2f} nats")
    console.print(f"same first choice           {report.agreement_before:8.1%} -> {report.agreement_after:.1%}")
    console.print(
        f"perplexity                  {report.perplexity_before:8.0f} -> {report.perplexity_after:.1f} "
        f"(teacher {report.perplexity_teacher:.1f})"
    )
    console.print(f"second pass from the cache  {report.cache_hit_ratio_second_pass:8.1%}")
    for row in report.continuations:
        console.print(f"\n[bold]{row.prompt}[/bold]", highlight=False)
        for who, text in (("teacher", row.teacher), ("before", row.before), ("after", row.after)):
            console.print(f"  {who:8}", text, highlight=False, markup=False)
    console.print(f"\nStudent: {report.export_dir}\nReport:  {os.path.relpath(page)}  ({report.seconds:.0f} s)")
