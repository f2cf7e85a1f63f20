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
from stillhouse.request import Sequence

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
    x_PN = logits_PN - logits_PN.amax(dim=1, keepdim=True).double()
    if temperature != 1:
        x_PN.div_(temperature)
    x_PN.clamp_(min=_NO_WEIGHT)
    weights_PN = row_math.exp(x_PN)
    levels = [weights_PN]
    while levels[-1].shape[1] > 1:
        levels.append(row_math.halved(levels[-1]))
    total_P1 = levels[-1]
    # H = -sum(p log p), with log p = x - log(total).
    entropy_P = row_math.log(total_P1[:, 0]) - row_math.row_sums_(x_PN.mul_(weights_PN)) / total_P1[:, 0]
    return _descend(levels, uniforms_PS.to(x_PN.device) * total_P1), entropy_P.float()


def _descend(levels: list[Tensor], rest_PS: Tensor) -> Tensor:
    """Return the leaf that each point of [0, total) falls upon."""
    node_PS = torch.zeros_like(rest_PS, dtype=torch.int64)
    sum_PS = levels[-1].expand_as(rest_PS)
    for level_PM, above_PH in zip(levels[-2::-1], levels[::-1], strict=False):
        left_PS = level_PM.gather(1, node_PS)
        # Where the left branch is the whole sum, nothing is to the right, or nothing that float64 can see: rounding
        # may have left a rest that is not below the sum, and it must not fall upon an id that cannot be.
        right = (rest_PS >= left_PS) & (sum_PS > left_PS)
        rest_PS = rest_PS - left_PS * right
        node_PS = node_PS + right * above_PH.shape[1]
        sum_PS = level_PM.gather(1, node_PS)
    return node_PS


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
