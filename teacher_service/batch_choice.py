"""Which of those who wait go through the model together: the longest-waiting, and the nearest to it in length.

So nobody starves and padding stays low. Knows nothing of queues, time or models.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

LOOK_AHEAD = 512
"""How many of those who wait longest are looked at for fitting lengths."""

# The part of a batch's budget that may be padding: about what a pass through a model costs besides its tokens.
_MOST_PADDING = 1 / 8

PaddedTokens = Callable[[SequenceOf[int]], int]
"""What a batch of sequences of these lengths costs, in tokens with all padding; a further sequence never lowers it."""


def rectangle(lengths: SequenceOf[int]) -> int:
    """Return the cost of a batch in which all are padded to the longest."""
    return len(lengths) * max(lengths)


def choose_batch(
    lengths: SequenceOf[int], max_batch_tokens: int, padded_tokens: PaddedTokens = rectangle
) -> tuple[list[int], bool]:
    """Choose the next batch.

    Args:
        lengths: of those who wait, in tokens, the longest-waiting first.
        max_batch_tokens: the most that the batch may cost, unless one sequence alone costs more.
        padded_tokens: what a batch costs.

    Returns:
        Indices into `lengths`, by rising length, 0 always among them; and whether the batch is full, so that waiting
        for company is of no use.
    """
    if not lengths:
        return [], False
    oldest = lengths[0]
    nearest = sorted(range(min(len(lengths), LOOK_AHEAD)), key=lambda index: (abs(lengths[index] - oldest), index))

    def cost(count: int) -> int:
        return padded_tokens([lengths[index] for index in nearest[:count]])

    # The first always goes, whatever it costs; those after it as long as the budget lasts.
    count = max(1, bisect_right(range(1, len(nearest) + 1), max_batch_tokens, key=cost))
    allowed = max(_MOST_PADDING * max_batch_tokens, cost(1) - oldest)
    while count > 1 and cost(count) - sum(lengths[index] for index in nearest[:count]) > allowed:
        count -= 1
    chosen = sorted(nearest[:count], key=lambda index: lengths[index])
    one_more = [lengths[index] for index in (*chosen, chosen[0])]
    return chosen, count < len(lengths) or padded_tokens(one_more) > max_batch_tokens
