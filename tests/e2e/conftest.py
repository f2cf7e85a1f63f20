"""Real processes for end-to-end tests: a teacher of a tiny random model, and a way to train a student from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.torture.service_process import OwnProcess, wait_until

READY_SECONDS = 90.0
RUN_SECONDS = 120.0

# One thread, as the number of threads is part of what makes two runs equal to the bit; no window into the outside.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

Train = Callable[..., "subprocess.CompletedProcess[str]"]


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[dict[str, str]]:
    """A teacher service in a process of its own, on free ports; yields its addresses."""
    ready = folder / "ready.json"
    argv = [sys.executable, "-m", "teacher_service", "serve", *flags]
    argv += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    process = OwnProcess(argv, folder / "teacher.log", ENVIRONMENT)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, READY_SECONDS, "the teacher's start")
        assert process.poll() is None, process.tail()
        yield json.loads(ready.read_text(encoding="utf-8"))
    finally:
        process.stop()


@pytest.fixture(scope="session")
def teacher(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of a teacher with a tiny random model and a cache; the session's tests share it."""
    model = ("--backend", "transformers", "--model", str(tiny_llama_folder), "--device", "cpu", "--dtype", "float32")
    with serving(tmp_path_factory.mktemp("teacher"), *model) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plain texts of many short documents, and conversations of which only the answers are learnt."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [
        f"batch {i}: the wash of {i * 7 % 31} litres runs {'slowly ' * (i % 5)}through still {i % 4}" for i in range(60)
    ]
    (folder / "notes.txt").write_text("\n\n".join(texts), encoding="utf-8")
    with (folder / "talks.jsonl").open("w", encoding="utf-8") as file:
        for i in range(12):
            messages = [
                {"role": "user", "content": f"what did run {i} give?"},
                {"role": "assistant", "content": f"{i * 3 % 17} litres of spirit, cut {i % 3} times"},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


@pytest.fixture(scope="session")
def student_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of workers: one thread, and a cache folder of the session's own."""
    return {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def student_argv(teacher: dict[str, str], corpus: Path) -> Callable[..., list[str]]:
    """Makes the command of a student: keys of the recipe as keyword arguments, over defaults for a tiny run."""

    def argv(output_dir: Path, **keys: Any) -> list[str]:
        chosen = {
            "teacher": teacher["grpc"],
            "output_dir": output_dir,
            "http_port": 0,
            "data": [corpus / "notes.txt", corpus / "talks.jsonl"],
            "text_separator": r"\n\n",
            "block_size": 32,
            "held_out_samples": 6,
            "keep_layers": "1",
            "max_steps": 20,
            "global_batch_size": 6,
            "learning_rate": 1e-3,
            "warmup_steps": 3,
            **keys,
        }
        words = [sys.executable, "-m", "student_worker", "train"]
        for name, value in chosen.items():
            if value is not None:
                words += [
                    f"--{name.replace('_', '-')}={item}" for item in (value if isinstance(value, list) else [value])
                ]
        return words

    return argv


@pytest.fixture(scope="session")
def train(student_argv: Callable[..., list[str]], student_environment: dict[str, str]) -> Train:
    """Runs a student to its end, and returns the finished process with its output."""

    def run(output_dir: Path, *words: str, **keys: Any) -> subprocess.CompletedProcess[str]:
        return forked.run(
            [*student_argv(output_dir, **keys), *words],
            env={**os.environ, **student_environment},
            timeout=RUN_SECONDS,
        )

    return run
