"""What a worker takes before it begins, where all workers are started alike: a number and a GPU of its own.

A launcher tells its workers who they are. Replicas of one container service have the same environment, so each finds
out what is free: the lowest number in the run's folder, and a GPU in the host's. Both are locks, and end with it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stillhouse.errors import ConfigurationError
from student_worker.devices import ListGpus, list_gpus, take_gpu
from student_worker.locks import Lock, try_lock
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import ENV_PREFIX

MAX_INDEX = 4096
"""Numbers tried; more workers than micro_shards are refused long before."""


@contextmanager
def placed(recipe: Recipe, gpus: ListGpus = list_gpus) -> Iterator[Recipe]:
    """Yield the recipe with what this worker has taken; it is given back at the end.

    Raises:
        ConfigurationError: nothing is free, or a folder of locks cannot be used.
    """
    with ExitStack() as held:
        if recipe.worker_index_by_lock:
            index, lock = _take_index(recipe)
            held.callback(lock.release)
            recipe = recipe.model_copy(update={"worker_index": index})
        if recipe.device_locks is not None and recipe.device in ("auto", "cuda"):
            taken = take_gpu(
                recipe.device_locks, reserved=recipe.reserved_devices, share=recipe.share_devices, gpus=gpus
            )
            if taken is not None:
                held.callback(taken[1].release)
        yield recipe


def _take_index(recipe: Recipe) -> tuple[int, Lock]:
    for index in range(MAX_INDEX):
        lock = try_lock(recipe.output_dir / f"worker-{index}.lock")
        if lock is not None:
            return index, lock
    raise ConfigurationError(f"worker_index_by_lock: all numbers below {MAX_INDEX} are taken in {recipe.output_dir}")


def gpus_of_their_own(recipe: Recipe) -> dict[str, str]:
    """Return the variables by which workers started together share out the GPUs, one each as long as there are so many.

    The locks are this user's on this host, so that another run takes other GPUs where there are any. What the recipe
    says itself of locks goes before.
    """
    if recipe.device_locks is not None or recipe.device not in ("auto", "cuda"):
        return {}
    folder = Path(tempfile.gettempdir()) / f"stillhouse-{os.getuid()}" / "gpus"
    return {f"{ENV_PREFIX}DEVICE_LOCKS": str(folder), f"{ENV_PREFIX}SHARE_DEVICES": "true"}
