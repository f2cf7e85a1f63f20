"""The tiny model that every torture is done to, its own answers, and a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.reference import Reference, save_tiny_model
from tests.torture.service_process import RedisProcess, redis_process


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model."""
    return save_tiny_model(tmp_path_factory.mktemp("tortured-model"))


@pytest.fixture(scope="session")
def reference(model: Path) -> Reference:
    """What the model answers in float32, without a service."""
    return Reference(model)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """An empty Valkey that a test may hurt."""
    with redis_process(tmp_path / "redis") as process:
        yield process
