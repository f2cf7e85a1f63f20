"""What docker-compose.yml and its overrides promise, read as Compose reads them.

Both lines of Compose are asked where they are installed: docker-compose 1.29 and the plugin of v2.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from student_worker.recipe.sources import load_recipe

ROOT = Path(__file__).parents[2]
FILES = {
    "gpu": ("docker-compose.yml",),
    "cpu": ("docker-compose.yml", "deploy/compose/cpu.yml"),
    "one-gpu": ("docker-compose.yml", "deploy/compose/one-gpu.yml"),
}
PROFILES = ("--profile", "capture", "--profile", "monitoring")
OURS = ("keys", "teacher-service", "student-lighthouse", "student-worker", "capture")


def _has_v2() -> bool:
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and "Compose" in asked.stdout


VERSIONS = {
    "1.29": ("docker-compose",) if shutil.which("docker-compose") else None,
    "v2": ("docker", "compose") if _has_v2() else None,
}


@pytest.fixture(params=VERSIONS)
def compose(request: pytest.FixtureRequest) -> tuple[str, ...]:
    command = VERSIONS[request.param]
    if command is None:
        pytest.skip(f"NOT TESTED under Compose {request.param}: it is not installed")
    return command


def merged(compose: tuple[str, ...], kind: str, **environment: str) -> dict[str, Any]:
    return dict(yaml.safe_load(_config(compose, kind, tuple(environment.items()))))


@cache
def _config(compose: tuple[str, ...], kind: str, variables: tuple[tuple[str, str], ...]) -> str:
    argv = [*compose, "--project-name", "stillhouse", "--project-directory", str(ROOT)]
    for file in FILES[kind]:
        argv += ["--file", str(ROOT / file)]
    # A developer's own variables and .env are not what is tested.
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **dict(variables)}
    with tempfile.NamedTemporaryFile() as nothing:
        argv += ["--env-file", nothing.name, *PROFILES, "config"]
        told = subprocess.run(argv, capture_output=True, text=True, env=clean, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.parametrize("kind", FILES)
def test_every_combination_is_valid_and_confined(compose: tuple[str, ...], kind: str) -> None:
    config = merged(compose, kind)
    services = config["services"]
    assert {*OURS, "redis", "prometheus", "grafana"} <= services.keys()
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert str(service["user"]) not in ("0", "root", ""), name
        assert "privileged" not in service, name
        for port in service.get("ports", []):
            host = port if isinstance(port, str) else port["host_ip"]
            assert host.startswith("127.0.0.1"), name
    assert {name for name, service in services.items() if service.get("ports")} == {
        "teacher-service",
        "student-worker",
        "prometheus",
        "grafana",
    }


@pytest.mark.parametrize("kind", FILES)
def test_students_restart_on_failure_only_and_services_always(compose: tuple[str, ...], kind: str) -> None:
    services = merged(compose, kind)["services"]
    assert services["student-worker"]["restart"] == "on-failure"
    assert services["capture"]["restart"] == services["keys"]["restart"] == "no"
    for name in ("redis", "teacher-service", "student-lighthouse", "prometheus", "grafana"):
        assert services[name]["restart"] == "unless-stopped"
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    for name in ("student-worker", "capture"):
        assert waits[name]["teacher-service"]["condition"] == "service_healthy"
    assert waits["teacher-service"]["redis"]["condition"] == "service_healthy"


def test_a_host_without_a_gpu_needs_no_nvidia_runtime(compose: tuple[str, ...]) -> None:
    services = merged(compose, "cpu")["services"]
    assert {service.get("runtime", "runc") for service in services.values()} == {"runc"}
    assert {services[name]["image"] for name in OURS} == {"stillhouse-teacher-cpu", "stillhouse-student-cpu"}


def test_the_teachers_gpus_are_the_ones_that_workers_leave_alone(compose: tuple[str, ...]) -> None:
    services = merged(compose, "gpu", TEACHER_GPUS="GPU-1,GPU-2")["services"]
    assert services["teacher-service"]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    worker = services["student-worker"]["environment"]
    assert worker["STUDENT_RESERVED_DEVICES"] == "GPU-1,GPU-2"
    assert worker["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_one_gpu_is_shared(compose: tuple[str, ...]) -> None:
    services = merged(compose, "one-gpu", TEACHER_GPUS="GPU-1")["services"]
    worker = services["student-worker"]["environment"]
    assert worker["STUDENT_RESERVED_DEVICES"] == ""
    assert worker["STUDENT_SHARE_DEVICES"] == "true"
    assert worker["NVIDIA_VISIBLE_DEVICES"] == services["teacher-service"]["environment"]["NVIDIA_VISIBLE_DEVICES"]


def test_one_variable_names_another_teacher_and_one_other_data(compose: tuple[str, ...], tmp_path: Path) -> None:
    services = merged(compose, "gpu", TEACHER_MODEL="OWNER/NAME", DATA_DIR=str(tmp_path))["services"]
    assert services["teacher-service"]["environment"]["TEACHER_MODEL"] == "OWNER/NAME"
    for name in ("student-worker", "capture"):
        mounts = [volume if isinstance(volume, str) else volume["source"] for volume in services[name]["volumes"]]
        assert any(mount.startswith(str(tmp_path)) for mount in mounts)


@pytest.mark.parametrize("kind", FILES)
def test_a_worker_takes_what_its_service_gives_it(compose: tuple[str, ...], kind: str) -> None:
    environment = merged(compose, kind)["services"]["student-worker"]["environment"]
    file = ROOT / "deploy" / "compose" / ("recipe-cpu.yaml" if kind == "cpu" else "recipe.yaml")
    given = {name: str(value) for name, value in environment.items() if name.startswith("STUDENT_")}
    recipe = load_recipe(file, {}, {**given, "STUDENT_RUN_TOKEN": "x" * 16})
    assert recipe.worker_index_by_lock
    assert recipe.micro_shards >= 3
    assert recipe.share_devices == (kind == "one-gpu")


def test_every_knob_is_explained_with_its_default() -> None:
    used: dict[str, set[str]] = {}
    for file in {name for names in FILES.values() for name in names}:
        for name, default in re.findall(r"\$\{(\w+):?-?([^}]*)\}", (ROOT / file).read_text(encoding="utf-8")):
            used.setdefault(name, set()).add(default)
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    explained = dict(re.findall(r"^#([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    assert explained.keys() == used.keys()
    for name, default in explained.items():
        # Where a named volume is the default, the example names a folder.
        if not name.endswith("_DIR"):
            assert default in used[name], name
    for name in ("DATA_DIR", "RECIPE", "RUNS_DIR", "TEACHER_MODEL", "TEACHER_GPUS"):
        assert name in explained
