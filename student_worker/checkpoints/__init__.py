"""Checkpoints: complete or absent, verified when they are read, in a folder or at any fsspec address."""

from student_worker.checkpoints.layout import Checkpoint, DamagedError
from student_worker.checkpoints.place import Place
from student_worker.checkpoints.store import BEST_FILE, CheckpointStore, open_place

__all__ = ["BEST_FILE", "Checkpoint", "CheckpointStore", "DamagedError", "Place", "open_place"]
