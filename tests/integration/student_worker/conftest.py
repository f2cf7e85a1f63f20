"""A teacher of a tiny random model behind its gRPC door, and whole runs of a student within this process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from student_worker.recipe.schema import Recipe
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings

READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left behind: its weights by name, and the lines of its steps."""

    weights: dict[str, Tensor]
    steps: list[dict[str, Any]]
    folder: Path


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def tiny_teacher(tiny_llama_folder: Path) -> Iterator[str]:
    """The address of a teacher in a thread of its own."""
    opened = threading.Event()
    ports: list[int] = []
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        settings = TeacherSettings(
            backend="transformers",
            model=str(tiny_llama_folder),
            dtype="float32",
            mode="deterministic",
            http_port=0,
            grpc_port=0,
        )
        service = TeacherService(settings, executor, None)
        try:
            await service.open()
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(service.stop))
            ports.append(service.grpc_port)
            opened.set()
            await service.serve()
        finally:
            await service.close()

    with ThreadPoolExecutor(1) as executor:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            assert opened.wait(READY_SECONDS)
            yield f"127.0.0.1:{ports[0]}"
        finally:
            for end in stop:
                end()
            thread.join(READY_SECONDS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of many short documents."""
    file = tmp_path_factory.mktemp("texts") / "notes.txt"
    lines = [f"batch {i}: {i * 7 % 31} litres run {'slowly ' * (i % 3)}through still {i % 4}" for i in range(24)]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def config_folder(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of a student of one layer, to be drawn at random."""
    folder = tmp_path_factory.mktemp("config")
    config = json.loads((tiny_llama_folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "layer_types": None, "attention_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def other_model_folder(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder with all its weights moved a little."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_llama_folder, folder)
    tensors = {name: tensor * 1.1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def train(tiny_teacher: str, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Runs a recipe to its end within this process; keyword arguments are its keys, over those of a tiny run."""
    tmp_path = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        patch.setenv(name, os.environ.get(name, ""))
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), structlog.get_config()
    runs = 0

    def run(**keys: Any) -> Trained:
        from student_worker.run import run as run_worker

        nonlocal runs
        runs += 1
        folder = tmp_path / f"run-{runs}"
        data = {"sources": [str(texts)], "text_separator": "\n\n", "block_size": 32, **keys.pop("data", {})}
        chosen: dict[str, Any] = {
            "teacher": tiny_teacher,
            "output_dir": folder,
            "http_port": 0,
            "student": {"keep_layers": "1"},
            "max_steps": None if {"max_tokens", "num_train_epochs"} & keys.keys() else 4,
            "global_batch_size": 6,
            "micro_shards": 4,
            "learning_rate": 3e-3,
            "adam_epsilon": 1e-5,
            "temperature": 2.0,
            "alpha": 0.3,
            "seed": 7,
            "torch_threads": 1,
            **keys,
        }
        assert run_worker(Recipe.model_validate({"data": data, **chosen})) == 0
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [record for record in map(json.loads, lines) if record.get("event") == "step"]
        return Trained(load_file(next((folder / "export").glob("*.safetensors"))), steps, folder)

    yield run
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    structlog.configure(**before[2])
    patch.undo()
