"""Where a model's weights lie: on one device, spread over several, offloaded, or split over processes.

Knows nothing of batches or answers.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stillhouse.fingerprint import weights_fingerprint


class Placement:
    """The devices of one model of `transformers`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def input_device(self) -> torch.device:
        """Where token ids go: the device of the embedding, wherever the layers after it are."""
        embedding = self._model.get_input_embeddings()
        hook = getattr(embedding, "_hf_hook", None)
        # An offloaded weight lies on no device; the hook of accelerate knows where it will be used.
        device = getattr(hook, "execution_device", None) if embedding.weight.is_meta else embedding.weight.device
        return torch.device(device if device is not None else "cpu")

    def device_kind(self) -> str:
        """Return what the devices are, and over how many processes weights are split: the low bits differ."""
        kinds = sorted({_kind(device) for device in self._devices()})
        return " + ".join(kinds) + (f" x {self.num_processes}" if self.num_processes > 1 else "")

    @property
    def num_processes(self) -> int:
        """Over how many processes each layer is split; 1 without tensor parallelism."""
        return max((p.device_mesh.size() for p in self._model.parameters() if isinstance(p, DTensor)), default=1)

    def machine_kind(self) -> str:
        """Return what else, of this machine, the bits of a product depend on where the CPU computes."""
        if not any(device.type == "cpu" for device in self._devices()):
            return ""
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{_cpu_model()}, {capability}, {torch.get_num_threads()} threads"

    def weights_fingerprint(self) -> str:
        """Return the fingerprint of the weights, the same wherever they lie.

        Collective where they are split over processes: each of them calls it.
        """
        return weights_fingerprint(self._weights())

    def _weights(self) -> dict[str, Tensor]:
        if any(parameter.is_meta for parameter in self._model.parameters()):
            from accelerate.utils.modeling import get_state_dict_offloaded_model

            loaded: dict[str, Tensor] = get_state_dict_offloaded_model(self._model)
            return loaded
        weights: dict[str, Tensor] = self._model.state_dict()
        # Gathered one after another, since all processes must ask for them in one order.
        return {name: t.full_tensor().cpu() if isinstance(t, DTensor) else t for name, t in weights.items()}

    def _devices(self) -> Iterator[torch.device]:
        yield self.input_device
        yield from (p.device for p in self._model.parameters() if not p.is_meta)


def _kind(device: torch.device) -> str:
    # Kernels, and with them the low bits, differ from one GPU model to another.
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
