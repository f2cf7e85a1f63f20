"""Every page's commands, run one after the other on tiny models: each ends well, as its page says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.docs.pages import PAGES, ROOT, Command, commands
from tests.docs.running import Place, Reader, needs, runs
from tests.e2e.conftest import serving

WITH_COMMANDS = [page for page in PAGES if any(runs(command) for command in commands(page))]

TRAINING = {
    "README.md", "docs/capture.md", "docs/commands.md", "docs/quickstart.md", "docs/recipe.md", "docs/training.md",
}  # fmt: skip
"""Pages whose commands train and capture: minutes together, even so."""

LIMIT_SECONDS = 900

TEXTS = [
    f"run {i}: the wash of {i * 7 % 31} litres ran {'slowly ' * (i % 5)}through still {i % 4}" for i in range(1200)
]


@pytest.fixture(scope="module")
def models(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher with as many layers as SmolLM2, so that those that the pages keep are there, and a smaller student."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, layers in (("teacher", 30), ("student", 2)):
        config = AutoConfig.from_pretrained(tiny_llama_folder)
        config.num_hidden_layers, config.max_position_embeddings, config.layer_types = layers, 2048, None
        with torch.random.fork_rng():
            torch.manual_seed(layers)
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # of transformers
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny_llama_folder).save_pretrained(folder / name)
        made[name] = folder / name
    return made


@pytest.fixture(scope="module")
def reader(models: dict[str, Path], valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    teacher, student = str(models["teacher"]), str(models["student"])
    folder = tmp_path_factory.mktemp("reader")
    model = ("--model", teacher, "--device", "cpu", "--mode", "deterministic")
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "SLURM_ARRAY_TASK_ID": "3",
    }
    with serving(folder, *model) as addresses:
        yield Reader(
            names={
                "smollm2": teacher,
                "Qwen/Qwen2.5-7B-Instruct": teacher,
                "Qwen/Qwen2.5-0.5B": student,
                "HuggingFaceTB/SmolLM2-360M": student,
            },
            grpc=addresses["grpc"],
            http=addresses["http"].partition("://")[2],
            redis_url=valkey,
            environment=environment,
        )


@pytest.fixture
def place(request: pytest.FixtureRequest, reader: Reader, tmp_path: Path) -> Iterator[Place]:
    """A folder with the texts that the pages name, and what else a page says is there already."""
    page = request.param
    (tmp_path / "notes.txt").write_text("\n\n".join(TEXTS[:200]), encoding="utf-8")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for part in range(4):
        (corpus / f"{part}.txt").write_text("\n".join(TEXTS[part::4]), encoding="utf-8")
    with pa.CompressedOutputStream(str(corpus / "0.jsonl.zst"), "zstd") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    (tmp_path / "docs").mkdir()
    for name in ("index.md", "quickstart.md", "data.md"):
        (tmp_path / "docs" / name).symlink_to(ROOT / "docs" / name)
    with closing(Place(page, tmp_path, reader)) as made:
        for text in AT_HAND.get(page, ()):
            made.run(Command(page, 0, text))
        made.save_files()
        yield made


TEXT = "--teacher 127.0.0.1:8001 --data notes.txt --block-size 64 --held-out-samples 4 "
CAPTURE = "stillhouse capture " + TEXT
TRAIN = "stillhouse student train " + TEXT + "--keep-layers 0-9 --max-steps 2 --output-dir runs/first"

AT_HAND: dict[str, tuple[str, ...]] = {
    "docs/commands.md": (
        CAPTURE + "--part 0/2 --samples-per-shard 64 --output-dir stores/notes-0",
        CAPTURE + "--part 1/2 --samples-per-shard 64 --output-dir stores/notes-1",
        CAPTURE + "--encoding hidden --output-dir stores/hidden",
        TRAIN,
    ),
    "docs/students.md": (TRAIN,),
}
"""What a page takes for granted: a store or a run that another page makes."""


def results(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")}


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize(
    "place",
    [pytest.param(page, marks=[pytest.mark.long] if page in TRAINING else []) for page in WITH_COMMANDS],
    indirect=True,
)
def test_the_commands_of_the_page_run(place: Place) -> None:
    done = [command for command in commands(place.page) if runs(command)]
    for command in done:
        needs(command)
    texts = [command.text for command in done]
    for command in done:
        printed = place.run(command, interrupted=f"{command.text} --resume" in texts)
        if command.output:
            assert_looks_like(printed, command.output)
        if command.text == "python loop.py":
            losses = [float(line.rpartition(" ")[2]) for line in printed.splitlines()]
            assert losses[-1] < losses[0]
    for name, result in results(place.folder).items():
        assert result["status"] == "done", name


def assert_looks_like(printed: str, shown: str) -> None:
    """See that what was printed begins as the page shows it, whatever the figures are."""
    lines = shown.rstrip().removesuffix("...").splitlines()
    for line, expected in zip(printed.splitlines(), lines, strict=False):
        pattern = re.sub(r"\\?[\da-f]{32}|[\d,.]+", "#", " ".join(expected.split()))
        assert re.sub(r"[\da-f]{32}|[\d,.]+", "#", " ".join(line.split())) == pattern
