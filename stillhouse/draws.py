"""Unbiased draws from a teacher's distribution, the same for the same logits wherever and whenever they are made.

Random sampling KD (arXiv 2503.16870): n independent draws with replacement from softmax(t / T) over the first N ids.
What decides them are the logits and uniform numbers that are no generator's state but a hash of what was asked about:
of the sequence, the seed and the position's index in the sequence. So neither how an answer was cut into chunks, nor
what else was asked for, nor what was drawn before shows in a draw. docs/payload-format.md says it in full.
Shapes: P positions, N vocabulary entries, S draws.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from stillhouse import row_math
from stillhouse.device_rows.choice import device_programs
from stillhouse.request import Sequence
from stillhouse.row_math import Array

_PURPOSE = b"stillhouse draws"  # BLAKE2's personalisation: 16 bytes, so that no other hash of the content is this one

# exp of anything from here downwards is 0 in float64 too; beyond it 0 times the logarithm would be NaN at -inf.
_NO_WEIGHT = -800.0


def content_key(sequence: Sequence, seed: int) -> bytes:
    """Return the 16 bytes that every uniform number of a sequence's draws is made of.

    What is asked about it (positions, temperature, N, the number of draws) has no part in them. One document is the
    same sequence whether it is named as a segment or not.
    """
    lengths = sequence.segment_lengths if len(sequence.segment_lengths) > 1 else ()
    digest = hashlib.blake2b(struct.pack("<QI", seed, len(lengths)), digest_size=16, person=_PURPOSE)
    digest.update(np.asarray(lengths, dtype="<u4").tobytes())
    digest.update(np.asarray(sequence.token_ids, dtype="<u4").tobytes())
    return digest.digest()


def uniforms(key: bytes, positions: SequenceOf[int], draws: int) -> Tensor:
    """Return `[P, S]` float64 in [0, 1): multiples of 2^-53 from the first 8 S bytes of SHAKE128(key, position)."""
    size = 8 * draws
    stream = b"".join(hashlib.shake_128(key + struct.pack("<Q", position)).digest(size) for position in positions)
    words = np.frombuffer(stream, dtype="<u8").reshape(len(positions), draws)
    return torch.from_numpy((words >> np.uint64(11)) * 2.0**-53)


def draw(logits_PN: Tensor, uniforms_PS: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the id that each uniform number draws `[P, S]` int64, and the entropies in nats `[P]` float32.

    The weights of a row, exp((t - its largest) / T) in float64, are the leaves of a binary tree of sums; a draw starts
    at its root with u times the sum of all, and takes the left branch where that is below the branch's sum, else the
    right one with what remains. An id of no weight (a logit of -inf) is never drawn.

    Args:
        logits_PN: on any device, in any floating-point dtype, at least one of each row above -inf, none NaN or +inf.
        uniforms_PS: float64 in [0, 1).
        temperature: T, above 0.
    """
    if logits_PN.device.type not in ("cpu", "cuda"):  # others (MPS) have no float64
        logits_PN = logits_PN.cpu()
    programs = device_programs(logits_PN.device)
    if programs is None or logits_PN.dtype == torch.float64:
        return draw_by_torch(logits_PN, uniforms_PS, temperature)
    drawn: tuple[Tensor, Tensor] = programs.draw(logits_PN, uniforms_PS, temperature)
    return drawn


def draw_by_torch(logits_PN: Tensor, uniforms_PS: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Do as `draw` says by torch's own operations, or numpy's."""
    x_PN = logits_PN - logits_PN.amax(dim=1, keepdim=True).double()
    if temperature != 1:
        x_PN.div_(temperature)
    x_PN.clamp_(min=_NO_WEIGHT)
    log_weights_PN = row_math.as_array(x_PN)
    weights_PN = row_math.exp(log_weights_PN)
    levels = [weights_PN]
    while levels[-1].shape[1] > 1:
        levels.append(_halved(levels[-1]))
    total_P = levels[-1][:, 0]
    # H = -sum(p log p), with log p = log_weight - log(total).
    log_weights_PN *= weights_PN
    entropy_P = row_math.log(total_P) - row_math.row_sums_(log_weights_PN) / total_P
    uniforms_PS = uniforms_PS.to(x_PN.device)
    points_PS = row_math.as_array(uniforms_PS) * total_P[:, None]
    rows_P1 = row_math.as_array(torch.arange(len(x_PN), device=x_PN.device)[:, None])
    ids_PS = row_math.as_array(torch.zeros_like(uniforms_PS, dtype=torch.int64))
    _descend(levels, rows_P1, points_PS, ids_PS)
    return row_math.as_tensor(ids_PS), row_math.as_tensor(entropy_P).float()


def _halved(sums_PN: Array) -> Array:
    """Return the next level of a tree, `[P, ceil(N / 2)]`, whose element i is the sum of i and ceil(N / 2) + i."""
    width = sums_PN.shape[1]
    half = (width + 1) // 2
    sums_PH = sums_PN[:, :half] + 0.0  # a copy, of either kind of array
    sums_PH[:, : width - half] += sums_PN[:, half:]
    return sums_PH


def _descend(levels: list[Array], rows_P1: Array, points_PS: Array, node_PS: Array) -> None:
    """Walk from the root, node 0, to the leaf that each point of [0, total) falls upon, in place."""
    sum_PS = levels[-1]
    for level_PM, above_PH in zip(levels[-2::-1], levels[::-1], strict=False):
        left_PS = level_PM[rows_P1, node_PS]
        # Where the left branch is the whole sum, nothing is to the right, or nothing that float64 can see: rounding
        # may have left a point that is not below the sum, and it must not fall upon an id that cannot be.
        right_PS = (points_PS >= left_PS) & (sum_PS > left_PS)
        points_PS -= left_PS * right_PS
        node_PS += right_PS * above_PH.shape[1]
        sum_PS = level_PM[rows_P1, node_PS]


def distinct(ids_PS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many distinct ids each row holds `[P]`, and, row after row, these ids rising `[E]` and their counts.

    All on the host; ids and counts are int32.
    """
    ids = np.sort(ids_PS.int().cpu().numpy(), axis=1)
    is_first = np.ones(ids.shape, dtype=bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(is_first)
    counts = np.diff(starts, append=ids.size).astype(np.int32)
    return torch.from_numpy(is_first.sum(axis=1)), torch.from_numpy(ids[is_first]), torch.from_numpy(counts)
