"""How many samples go into a shard, and how many into a row group.

A shard is what a capture loses nothing of, what is copied, checked and opened as one: some 2^18 tokens, and not much
over 64 MiB. A row group is what one random read decodes: some 2,048 tokens, and not much over 1 MiB. A function of
the encoding and shapes alone, never of the answers, so that every share of a capture cuts alike.
"""

from __future__ import annotations

from typing import Final

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType

SHARD_TOKENS: Final = 2**18
SHARD_BYTES: Final = 64 * 2**20
GROUP_TOKENS: Final = 2**11
GROUP_BYTES: Final = 2**20

SAMPLE_BYTES_PER_TOKEN: Final = 5
"""About what ids, labels and the rest of a sample take on disk."""

_ITEM_BYTES: Final[dict[ValueType, int]] = {"float32": 4, "float16": 2, "bfloat16": 2}


def shard_samples(encoding: Encoding, vocabulary_size: int, hidden_size: int, block_size: int) -> int:
    """Return the number of samples of a shard: a whole number of row groups, or less than one."""
    per_token = bytes_per_token(encoding, vocabulary_size, hidden_size)
    most = max(1, min(SHARD_TOKENS, int(SHARD_BYTES / per_token)) // block_size)
    group = group_samples(encoding, vocabulary_size, hidden_size, block_size)
    return max(1, most // group * group)


def group_samples(encoding: Encoding, vocabulary_size: int, hidden_size: int, block_size: int) -> int:
    """Return the number of samples of a row group."""
    per_token = bytes_per_token(encoding, vocabulary_size, hidden_size)
    return max(1, min(GROUP_TOKENS, int(GROUP_BYTES / per_token)) // block_size)


def bytes_per_token(encoding: Encoding, vocabulary_size: int, hidden_size: int) -> float:
    """Return about how many bytes a token takes on disk, every position of it asked for; seldom more."""
    match encoding:
        case Dense(value_type):
            answer = float(vocabulary_size * _ITEM_BYTES[value_type])
        case Hidden(value_type):
            answer = float(hidden_size * _ITEM_BYTES[value_type])
        case TopK(k, value_type):
            answer = 16 + k * (2.0 + _ITEM_BYTES[value_type])
        case Sampled(draws, _):
            # At T = 1 a third of the draws are distinct; seldom over ten in a row of hundreds.
            answer = 8 + 0.75 * min(draws, vocabulary_size)
        case Candidates(token_ids, value_type):
            # Ids that each position names itself are not known beforehand: as many as a student's first choices.
            answer = 16.0 + (len(token_ids) * _ITEM_BYTES[value_type] or 64 * (2 + _ITEM_BYTES[value_type]))
    return SAMPLE_BYTES_PER_TOKEN + answer
