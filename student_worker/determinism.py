"""Only deterministic kernels, for the whole process: what `full_determinism` asks for.

On a CPU, torch's kernels are deterministic as they are, for one number of threads. On CUDA some are not (sums by atomic
adds, cuBLAS with several streams), and here they are exchanged for slower ones, or refused by name where there is no
other. As transformers' `enable_full_determinism` does, but for the seeds: whatever is random here has its own.
"""

from __future__ import annotations

import os

VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
"""Read when cuBLAS makes its first handle, and by flash-attn; a value that is set already stays."""


def only_deterministic_kernels() -> None:
    """Let torch use no other kernels; call it before anything is computed on a device.

    An operation without a deterministic kernel raises RuntimeError, which names it, where it is used.
    """
    import torch

    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
