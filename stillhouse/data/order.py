"""The one global order in which samples are trained on, whatever the number of workers.

The order is endless: position p lies in epoch p // n and every epoch holds each of the n samples once. Within an
epoch it is a keyed pseudo-random permutation with random access in constant time, so that a step, a worker that
joins, or a resumed run computes just the ids that it needs and nothing is stored. A pure function of (data
fingerprint, seed, epoch, n): a change here would reorder every run ever begun, so golden values stand in a test.
Knows nothing of files, workers or steps.

The permutation is a balanced Feistel network over the smallest even number of bits that hold n, with cycle walking:
an image outside [0, n) is mapped again until it falls inside. A Feistel network is a bijection whatever its round
function, and so is its restriction by cycle walking. The domain is below 4n (16 at least), so that few walks are
needed. Round keys are BLAKE2b (RFC 7693) of the epoch's name; the round function is splitmix64's finaliser.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
_Words = NDArray[np.uint64]

ORDER_VERSION: Final = 1
"""Part of every key; raised only if the order must ever change."""

ROUNDS: Final = 8
"""BLAKE2b's 64 bytes are exactly the keys of 8 rounds; four suffice for a pseudo-random permutation."""


class Order:
    """The endless order of `num_samples` samples under a seed.

    Args:
        num_samples: n, at least 1.
        seed: any integer.
        data_fingerprint: the fingerprint of the dataset, so that other data has another order.
    """

    def __init__(self, num_samples: int, seed: int, data_fingerprint: str) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self.data_fingerprint = data_fingerprint
        # Two bits at least on each side: with fewer, eight rounds reach only some of the few permutations.
        self._half_bits = max(2, ((num_samples - 1).bit_length() + 1) // 2)

    def sample_ids(self, start: int, count: int) -> Ids:
        """Return the sample ids at positions start, ..., start + count - 1 of the endless order, int64 `[count]`.

        Raises:
            ValueError: start or count is below 0.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be 0 or more; got {start} and {count}")
        ids = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, offset = divmod(start + done, self.num_samples)
            length = min(count - done, self.num_samples - offset)
            ids[done : done + length] = self._permute(np.arange(offset, offset + length, dtype=np.uint64), epoch)
            done += length
        return ids

    def epoch(self, position: int) -> int:
        """Return the epoch, counted from 0, in which a position of the endless order lies."""
        return position // self.num_samples

    def _permute(self, indices: _Words, epoch: int) -> Ids:
        keys = self._round_keys(epoch)
        images = self._feistel(indices, keys)
        outside = np.flatnonzero(images >= self.num_samples)
        # Ends: every walk follows a cycle of the network that leads back to its start, which lies inside.
        while outside.size:
            images[outside] = self._feistel(images[outside], keys)
            outside = outside[images[outside] >= self.num_samples]
        return images.astype(np.int64)

    def _feistel(self, values: _Words, keys: _Words) -> _Words:
        half = np.uint64(self._half_bits)
        low = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> half, values & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        return (left << half) | right

    def _round_keys(self, epoch: int) -> _Words:
        name = f"stillhouse order {ORDER_VERSION}\n{self.data_fingerprint}\n{self.seed}\n{epoch}\n{self.num_samples}"
        digest = hashlib.blake2b(name.encode(), digest_size=8 * ROUNDS).digest()
        return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _mix(words: _Words) -> _Words:
    """Return splitmix64's finaliser of each word: every bit of the input reaches every bit of the output."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
