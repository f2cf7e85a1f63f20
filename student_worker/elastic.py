"""Elastic groups of workers, on torchft."""

from __future__ import annotations

from student_worker.group import Group, Membership, Metadata, SoloGroup, TrainingState

__all__ = ["Group", "Membership", "Metadata", "SoloGroup", "TrainingState"]
