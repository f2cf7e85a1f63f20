"""The tiny model that every torture is done to, its own answers, and a Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.torture.reference import Reference, save_tiny_model
from tests.torture.service_process import BOUNDS, RedisProcess, ServiceProcess, redis_process, serving


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The reference leaves a core to the service."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quiet_retries() -> None:
    """Clients that are told to come again say so, thousands of times here."""
    logging.getLogger("stillhouse.client").setLevel(logging.ERROR)


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


@pytest.fixture(scope="session")
def bounded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, RedisProcess]]:
    """A deterministic service with a short queue, and its Redis: what the quick tests share."""
    folder = tmp_path_factory.mktemp("bounded")
    flags = ("--mode", "deterministic", "--dtype", "float32", "--cache-timeout-seconds", "1", *BOUNDS)
    with (
        redis_process(folder / "redis") as redis,
        serving(folder / "service", model, *flags, redis_url=redis.url) as service,
    ):
        yield service, redis
