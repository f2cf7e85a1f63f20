"""What only a GPU shows: `make test-cuda` on a machine with one. Anywhere else these tests are left out, and say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.e2e.conftest import corpus, student_argv, student_environment, train

__all__ = ["corpus", "student_argv", "student_environment", "train"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if not torch.cuda.is_available():
        reason = "NOT TESTED: what only a GPU shows; torch finds no CUDA device"
    elif os.environ["TRITON_INTERPRET"] == "1":
        reason = "NOT TESTED: what only a GPU shows; Triton's interpreter is on: run `make test-cuda`"
    for item in items:
        if reason is not None and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    return torch.device("cuda", 0)
