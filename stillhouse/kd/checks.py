"""What a loss is asked with, checked before anything is computed. Every error names the argument and its value."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from numbers import Real

import torch
from torch import Tensor

from stillhouse.errors import InvalidRequestError
from stillhouse.kd.rows import NO_LABEL

Labels = Tensor | SequenceOf[int] | None
"""One label for each row, `NO_LABEL` (-100) where there is none; None: no row has one."""

Mask = Tensor | SequenceOf[bool] | None
"""One bool for each row: True counts. None: every row counts."""

TEMPERATURE_TOLERANCE = 1e-6
"""Relative: a temperature that travelled as float32 is still the one that was asked for."""


def check_temperature(temperature: float) -> float:
    """Return the temperature as a float, or raise ValueError."""
    if not _is_number(temperature) or not (math.isfinite(temperature) and temperature > 0):
        raise InvalidRequestError(f"temperature must be a finite number above 0; got {temperature!r}")
    return float(temperature)


def check_vocabulary_size(vocabulary_size: int | None) -> None:
    """Raise ValueError unless it is None or a number of ids."""
    is_whole = isinstance(vocabulary_size, int) and not isinstance(vocabulary_size, bool)
    if vocabulary_size is not None and not (is_whole and vocabulary_size >= 1):
        raise InvalidRequestError(
            f"vocabulary_size must be at least 1 and an integer, or None for all; got {vocabulary_size!r}"
        )


def check_alpha(alpha: float) -> float:
    """Return alpha, the weight of cross-entropy (1 - alpha weighs KL), as a float, or raise ValueError."""
    if not _is_number(alpha) or not 0 <= alpha <= 1:
        raise InvalidRequestError(
            f"alpha, the weight of cross-entropy (1 - alpha weighs KL), must be from 0 to 1; got {alpha!r}"
        )
    return float(alpha)


def same_temperature(payload: float, asked: float) -> None:
    """Refuse a sparse answer made at another temperature: its tail cannot be tempered again, nor its draws."""
    if not math.isclose(payload, asked, rel_tol=TEMPERATURE_TOLERANCE):
        raise InvalidRequestError(
            f"temperature is {asked}, but the teacher's answer was made at {payload}, and what it leaves out is known "
            f"at that temperature alone; ask the teacher with temperature={asked}"
        )


def check_labels(labels: Labels, rows: int) -> Tensor:
    """Return the labels as `[rows]` int64 on CPU.

    Raises:
        ValueError: another number of labels than rows, or labels that are not integers.
    """
    if labels is None:
        return torch.full((rows,), NO_LABEL)
    tensor = integers("labels", torch.as_tensor(labels))
    if tensor.shape != (rows,):
        raise ValueError(f"labels must have one entry for each of the {rows} rows; got shape {tuple(tensor.shape)}")
    return tensor


def integers(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of integers, or one without any elements, as int64 on CPU.

    Raises:
        ValueError: floats or bools, which a cast would make into other labels.
    """
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise ValueError(f"{name} must be integers; got {tensor.dtype}")
    return tensor.detach().cpu().to(torch.int64)


def check_mask(mask: Mask, rows: int) -> Tensor:
    """Return the mask as `[rows]` bool on CPU; True counts, and None is all True.

    Raises:
        ValueError: another shape, or a dtype in which "counts" could be read two ways.
    """
    if mask is None:
        return torch.ones(rows, dtype=torch.bool)
    tensor = torch.as_tensor(mask).detach().cpu()
    if tensor.dtype != torch.bool or tensor.shape != (rows,):
        raise ValueError(
            f"mask must be bool, one entry for each of the {rows} rows; got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    return tensor


def check_label_range(labels: Tensor, width: int, name: str = "labels") -> None:
    """Refuse a label, of any shape of them, that is neither `NO_LABEL` nor an id below `width`."""
    wrong = (labels != NO_LABEL) & ((labels < 0) | (labels >= width))
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        got = int(labels[tuple(place)])
        raise ValueError(f"{name}{place} must be {NO_LABEL} (no label) or an id from 0 to {width - 1}; got {got}")


def check_draws(offsets: Tensor, counts: Tensor, draws: int) -> None:
    """Refuse ragged rows whose counts are not `draws` draws each: they would teach another distribution.

    Raises:
        InvalidRequestError: offsets that do not cut the counts into rows, or a row with another number of draws.
    """
    ends = offsets.cpu()
    if int(ends[0]) != 0 or int(ends[-1]) != len(counts) or bool((ends.diff() < 1).any()):
        raise InvalidRequestError(
            f"offsets of sampled counts must rise from 0 to their {len(counts)} entries, by at least one a row"
        )
    sums = torch.nn.functional.pad(counts.cpu().long().cumsum(0), (1, 0))[ends].diff()
    wrong = (sums != draws).nonzero()
    if len(wrong) or bool((counts < 1).any()):
        row = int(wrong[0]) if len(wrong) else int((ends <= int((counts < 1).nonzero()[0])).sum()) - 1
        raise InvalidRequestError(
            f"counts of sampled row {row} must be at least 1 each and {draws} in all; they add up to {int(sums[row])}"
        )


def check_denominator(name: str, given: int | None, own: int) -> int:
    """Return the number of rows that a term is averaged over: the given one, or this call's own.

    Raises:
        ValueError: not an integer, or 0 where this call has such rows.
    """
    if given is None:
        return own
    if isinstance(given, bool) or not isinstance(given, int) or given < min(1, own):
        raise ValueError(f"{name} must be an integer, at least 1 where a row counts; got {given!r} for {own} rows")
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
