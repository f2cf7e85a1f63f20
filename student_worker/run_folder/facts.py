"""What is true of a run whatever becomes of it: versions, source, host, device, and the fingerprints it began with."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from stillhouse.fingerprint import weights_fingerprint
from stillhouse.kd.kernels import kernel_name
from stillhouse.version import __version__, source_commit
from student_worker.planning.preflight import Ready
from student_worker.recipe.schema import Recipe

PACKAGES = ("torch", "transformers", "torchft", "peft", "numba")


def collect_facts(recipe: Recipe, ready: Ready, identity: dict[str, str]) -> dict[str, Any]:
    """Return the facts; the student is hashed as it is now, before any checkpoint is loaded into it."""
    return {
        "version": __version__,
        "commit": source_commit(),
        "recipe": recipe.hash,
        "data": identity["data"],
        "seed": recipe.seed,
        "teacher": identity["teacher"],
        "identity": identity,
        "fingerprints": {
            "teacher": ready.teacher.weights_fingerprint,
            "teacher_answers": ready.teacher.fingerprint,
            "student_start": weights_fingerprint(ready.student.module.state_dict()),
            "tokenizer": ready.corpus.train.tokenizer_fingerprint,
            "held_out": ready.corpus.held_out.fingerprint if ready.corpus.held_out else None,
        },
        "models": {"teacher": ready.teacher.model, "student": ready.description},
        "max_steps": ready.num_steps,
        "host": host_facts(),
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Return what a device is, on which host, and what computes the loss there."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": str(device),
        "name": name,
        "host": socket.gethostname(),
        "threads": torch.get_num_threads(),
        "loss": kernel_name(device),
    }


def host_facts() -> dict[str, Any]:
    """Return what the host computes with."""
    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := _version_of(name)) is not None},
    }


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
