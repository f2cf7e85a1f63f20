"""A deterministic teacher of a tiny model in a process of its own, a corpus with masks, and the verb itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.main import build_app, run
from tests.torture.service_process import ServiceProcess, serving

DETERMINISTIC = ("--mode", "deterministic", "--dtype", "float32")

Capture = Callable[..., int]


@pytest.fixture(scope="session")
def capture_teacher(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The session's tests share it."""
    with serving(tmp_path_factory.mktemp("capture-teacher"), tiny_llama_folder, *DETERMINISTIC) as service:
        yield service


@pytest.fixture(scope="session")
def corpus_flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Texts of many short documents, and conversations of which only the answers are learnt; some of it held out."""
    folder = tmp_path_factory.mktemp("capture-corpus")
    texts = [f"run {i}: {i * 7 % 31} litres {'slowly ' * (i % 5)}through still {i % 4}" for i in range(40)]
    (folder / "notes.txt").write_text("\n\n".join(texts), encoding="utf-8")
    with (folder / "talks.jsonl").open("w", encoding="utf-8") as file:
        for i in range(10):
            messages = [
                {"role": "user", "content": f"what did run {i} give?"},
                {"role": "assistant", "content": f"{i * 3 % 17} litres of spirit, cut {i % 3} times"},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    flags = [f"--data={folder / 'notes.txt'}", f"--data={folder / 'talks.jsonl'}", r"--text-separator=\n\n"]
    return [*flags, "--block-size=32", "--held-out-samples=5", f"--cache-dir={folder / 'cache'}"]


@pytest.fixture
def capture(capture_teacher: ServiceProcess, corpus_flags: list[str]) -> Capture:
    """Runs the verb in this process, on the corpus and from the teacher unless others are named; returns its code."""

    def capture(output_dir: Path, *words: str, teacher: str | None = capture_teacher.grpc, **flags: Any) -> int:
        argv = ["capture", f"--output-dir={output_dir}", *corpus_flags, *words]
        argv += [f"--teacher={teacher}"] if teacher is not None else []
        argv += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        return run(build_app(), "stillhouse", argv)

    return capture


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
