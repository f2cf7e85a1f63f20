"""The memory of a device, as metrics and pages show it; with a CUDA that a test makes up."""

from __future__ import annotations

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from stillhouse.own_metrics import device_memory, show_self


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two devices, of which this process computes on the second; asked about the first, it would begin to use it."""
    asked: list[int] = []

    def mem_get_info(index: int) -> tuple[int, int]:
        asked.append(index)
        return 30, 80

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 20 * index)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 15 * index)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    return asked


def test_only_devices_that_hold_something_are_asked(two_devices: list[int]) -> None:
    assert device_memory() == {"cuda:1": {"total": 80, "used": 50, "reserved": 20, "allocated": 15}}
    assert two_devices == [1]


def test_the_metric_says_which_memory(two_devices: list[int]) -> None:
    del two_devices
    registry = CollectorRegistry()
    show_self(registry, "student")
    text = generate_latest(registry).decode()
    assert 'student_device_memory_bytes{device="cuda:1",kind="used"} 50.0' in text
    assert 'student_build_info{commit="' in text


def test_without_cuda_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_memory() == {}
