"""What each service shows of itself, under its own prefix: its build, its process, and the memory of its device.

Needs prometheus-client, which both services bring. Knows nothing of what they do.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stillhouse.version import __version__, source_commit


def show_self(registry: CollectorRegistry, service: str) -> None:
    """Add `SERVICE_build_info`, `SERVICE_device_memory_bytes` and the process's own figures to a registry."""
    registry.register(Build(service))
    registry.register(DeviceMemory(service))
    ProcessCollector(registry=registry)


class Build(Collector):
    """What runs, worked out when somebody asks: a checkout's commit takes git some milliseconds, once."""

    def __init__(self, service: str) -> None:
        self._name = f"{service}_build_info"

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give one gauge, always 1."""
        import torch

        family = GaugeMetricFamily(
            self._name,
            "Always 1; the labels say what runs: the release, its commit, and the build of torch.",
            labels=["version", "commit", "torch"],
        )
        family.add_metric([__version__, source_commit() or "unknown", str(torch.__version__)], 1)
        yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Give its name alone, which is all that a registry needs at first."""
        yield GaugeMetricFamily(self._name, "")


class DeviceMemory(Collector):
    """The memory of each CUDA device that this process computes on, read when somebody asks.

    `kind` is `total`; `used`, by all processes; `reserved`, what this process's allocator holds; and `allocated`, what
    its tensors take of that.
    """

    def __init__(self, service: str) -> None:
        self._name = f"{service}_device_memory_bytes"

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give one gauge; without samples where nothing runs on CUDA."""
        family = GaugeMetricFamily(
            self._name,
            "Memory of a device: total, used (by all), reserved (by this process), allocated (by its tensors).",
            labels=["device", "kind"],
        )
        for device, kinds in device_memory().items():
            for kind, value in kinds.items():
                family.add_metric([device, kind], value)
        yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Give its name alone."""
        yield GaugeMetricFamily(self._name, "")


def device_memory() -> dict[str, dict[str, int]]:
    """Return the bytes by device and kind. A device that holds nothing of ours is left out: to ask it would cost."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        return {}
    found = {}
    for index in range(torch.cuda.device_count()):
        reserved = torch.cuda.memory_reserved(index)
        if reserved:
            free, total = torch.cuda.mem_get_info(index)
            allocated = torch.cuda.memory_allocated(index)
            found[f"cuda:{index}"] = {
                "total": total,
                "used": total - free,
                "reserved": reserved,
                "allocated": allocated,
            }
    return found
