"""Sums of gradients over micro-shards: one fixed binary tree, the same bits whoever computed which shard.

A global batch is cut into M micro-shards, M a power of two. Their gradients are summed as a binary tree over the
shard's number m, never over the rank: ((0 + 1) + (2 + 3)) + ... . A rank that holds the shards [first, end) reduces
them on the way to its *blocks*, the largest subtrees of that tree which lie inside its range; the ranks then finish
the tree together. `LocalSum` is the quick sum beside it, whose bits depend on how many ranks there are.

Knows nothing of models, optimisers or membership; ranks talk through the few calls of `Collectives`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from stillhouse.errors import ConfigurationError

PIECE_ELEMENTS = 1 << 20
"""Elements of the gradient exchanged at a time: the buffers, 4 MiB per block, stay in the processor's caches."""


class Collectives(Protocol):
    """What a sum asks of the ranks of a world; every call is made by all ranks, in the same order."""

    rank: int
    world_size: int
    newcomers: int
    """So many of the last ranks hold no shards of this step: they were taking the weights from a peer."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor` on every rank by the sum over ranks."""

    def all_to_all(self, output: Tensor, source: Tensor, output_sizes: list[int], source_sizes: list[int]) -> None:
        """Send `source_sizes[j]` elements of flat `source` to rank j; receive `output_sizes[j]` from it."""


class GradientSum(Protocol):
    """A sum over the micro-shards of one step; one object serves all steps."""

    num_shards: int
    num_elements: int
    device: torch.device

    def clear(self) -> None:
        """Forget every summand; the buffers are kept for the next step."""

    def add(self, shard: int, gradient: Tensor) -> None:
        """Add a flat float32 gradient `[n]` of micro-shard `shard`; the caller may overwrite it afterwards."""

    def total(self, collectives: Collectives | None) -> Tensor:
        """Return the sum `[n]` over all shards of all ranks, valid until `clear`; None is a world of one."""


@dataclass(frozen=True)
class Block:
    """A whole subtree: the shards [start, start + size), size a power of two that divides start."""

    start: int
    size: int


def shard_range(rank: int, world_size: int, num_shards: int) -> range:
    """Return the contiguous micro-shards of one rank; sizes differ by at most one."""
    return range(rank * num_shards // world_size, (rank + 1) * num_shards // world_size)


def shard_ranges(world_size: int, newcomers: int, num_shards: int) -> list[range]:
    """Return every rank's contiguous micro-shards; the last `newcomers` of them have none."""
    busy = world_size - newcomers
    return [shard_range(rank, busy, num_shards) if rank < busy else range(0) for rank in range(world_size)]


def blocks_of(shards: range) -> list[Block]:
    """Return the largest subtrees that lie inside a contiguous range, from left to right."""
    blocks = []
    start = shards.start
    while start < shards.stop:
        size = start & -start if start else 1 << (shards.stop - 1).bit_length()
        while start + size > shards.stop:
            size //= 2
        blocks.append(Block(start, size))
        start += size
    return blocks


class _Tree:
    """A binary counter of partial sums: equal neighbours under one parent are added as soon as both are there."""

    def __init__(self) -> None:
        self.entries: list[tuple[Block, Tensor]] = []
        self.free: list[Tensor] = []

    def push(self, block: Block, summand: Tensor, *, owned: bool) -> None:
        """Add a block to the right of all others; a summand that is not `owned` is copied before it is kept."""
        while self.entries and self._is_sibling(block):
            left, partial = self.entries.pop()
            partial += summand
            if owned:
                self.free.append(summand)
            block, summand, owned = Block(left.start, 2 * left.size), partial, True
        if not owned:
            kept = self.free.pop() if self.free else torch.empty_like(summand)
            summand = kept.copy_(summand)
        self.entries.append((block, summand))

    def _is_sibling(self, block: Block) -> bool:
        left = self.entries[-1][0]
        return left.size == block.size and left.start + left.size == block.start and left.start % (2 * left.size) == 0

    def clear(self) -> None:
        self.free += [partial for _, partial in self.entries]
        self.entries.clear()


class ShardTree:
    """The exact sum (`reduction: exact`): the bits depend on the shards alone.

    Holds at most log2(M) + 1 partial sums `[n]` for a rank that holds all shards, twice that for any other range.

    Args:
        num_shards: M, a power of two.
        num_elements: n, the length of the flat gradient.
        device: where the partial sums live.

    Raises:
        ConfigurationError: If `num_shards` is not a power of two.
    """

    def __init__(self, num_shards: int, num_elements: int, device: torch.device | str = "cpu") -> None:
        if num_shards < 1 or num_shards & (num_shards - 1):
            raise ConfigurationError(f"micro_shards is {num_shards}; it must be a power of two, such as 4 or 8")
        self.num_shards = num_shards
        self.num_elements = num_elements
        self.device = torch.device(device)
        self._tree = _Tree()
        self._next: int | None = None
        self._buffers: dict[str, Tensor] = {}
        self._lent: Tensor | None = None

    def _buffer(self, name: str, num_elements: int) -> Tensor:
        """Return scratch memory that outlives the step: fresh pages cost more than the sum itself."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < num_elements:
            buffer = self._buffers[name] = torch.empty(num_elements, device=self.device)
        return buffer[:num_elements]

    def clear(self) -> None:
        """Forget every summand; the buffers are kept for the next step."""
        self._tree.clear()
        self._next = None
        if self._lent is not None:
            self._tree.free.append(self._lent)
            self._lent = None

    def add(self, shard: int, gradient: Tensor) -> None:
        """Add the gradient of the next micro-shard; shards come in order, from whichever the range begins with.

        Raises:
            ValueError: If the shard is not the next one, or the gradient is not float32 `[n]`.
        """
        check_summand(self, shard, gradient)
        if self._next is not None and shard != self._next:
            raise ValueError(f"micro-shard {shard} came where {self._next} was due: the order is part of the sum")
        self._next = shard + 1
        self._tree.push(Block(shard, 1), gradient, owned=False)

    def _lend(self) -> Tensor:
        """Return room for the total of a rank that holds nothing, until `clear`."""
        free = self._tree.free
        self._lent = free.pop() if free else torch.empty(self.num_elements, device=self.device)
        return self._lent

    @property
    def blocks(self) -> list[tuple[Block, Tensor]]:
        """The partial sums held now, from left to right."""
        return list(self._tree.entries)

    def total(self, collectives: Collectives | None) -> Tensor:
        """Return the root of the tree `[n]`; None is a world of one.

        Raises:
            ValueError: If this rank does not hold exactly the shards that `shard_ranges` gives it.
        """
        c = collectives
        rank, world_size, newcomers = (c.rank, c.world_size, c.newcomers) if c else (0, 1, 0)
        expected = [blocks_of(shards) for shards in shard_ranges(world_size, newcomers, self.num_shards)]
        held = [block for block, _ in self._tree.entries]
        if held != expected[rank]:
            raise ValueError(f"rank {rank} of {world_size} holds {held}, not its shards {expected[rank]}")
        if collectives is None or world_size == 1:
            return self._tree.entries[0][1]
        if all(len(blocks) == 1 for blocks in expected) and world_size == 2:
            # One addition of two numbers: it has one order, so the plain all-reduce gives the bits of the tree.
            root = self._tree.entries[0][1]
            collectives.all_reduce(root)
            return root
        return self._finish_together(collectives, expected)

    def _finish_together(self, collectives: Collectives, expected: list[list[Block]]) -> Tensor:
        """Every rank finishes the tree for its slice of each piece, and tells all others.

        One exchange for each piece carries the blocks of that piece and the finished slices of the piece before. The
        result takes the place of the first partial sum, whose pieces are no longer needed by then.
        """
        world_size, held = collectives.world_size, [partial for _, partial in self._tree.entries]
        width = slice_elements(self.num_elements, world_size)
        piece = width * world_size
        num_pieces = -(-self.num_elements // piece)
        total = held[0] if held else self._lend()
        finished: Tensor | None = None
        for index in range(num_pieces + 1):
            has_blocks, start = index < num_pieces, index * piece
            told = 0 if finished is None else 1
            source = self._buffer("source", world_size * (told + has_blocks * len(held)) * width)
            rows = source.view(world_size, told + has_blocks * len(held), width)
            if finished is not None:
                rows[:, 0] = finished
            if has_blocks:
                for row, partial in enumerate(held, start=told):
                    _cut(partial[start : start + piece], rows[:, row])
            counts = [told + has_blocks * len(blocks) for blocks in expected]
            received = self._buffer("received", sum(counts) * width)
            sizes = [count * width for count in counts]
            collectives.all_to_all(received, source, sizes, [rows.shape[1] * width] * world_size)
            parts = [part.view(-1, width) for part in torch.split(received, sizes)]
            if finished is not None:
                _join([part[0] for part in parts], total[start - piece : start])
            if has_blocks:
                tree = _Tree()
                summands = (summand for part in parts for summand in part[told:])
                for block, summand in zip((block for blocks in expected for block in blocks), summands, strict=True):
                    tree.push(block, summand, owned=True)
                finished = tree.entries[0][1]
        return total


def slice_elements(num_elements: int, world_size: int) -> int:
    """Return how many elements of each piece of a gradient one rank finishes."""
    return -(-min(PIECE_ELEMENTS, num_elements) // world_size)


def _cut(piece: Tensor, slices: Tensor) -> None:
    """Copy a piece into `[ranks, width]`; what lies past its end is summed as zeros, and never read again."""
    width = slices.shape[1]
    whole, rest = divmod(len(piece), width)
    slices[:whole] = piece[: whole * width].view(whole, width)
    slices[whole:] = 0
    if rest:
        slices[whole, :rest] = piece[whole * width :]


def _join(slices: list[Tensor], piece: Tensor) -> None:
    """Copy slices, one after another, over a piece that may end before they do."""
    for part, target in zip(slices, torch.split(piece, len(slices[0])), strict=False):
        target.copy_(part[: len(target)])


class LocalSum:
    """The quick sum (`reduction: fast`): shards are added as they come, then one plain all-reduce.

    Equal from run to run only while the number of workers stays the same.
    """

    def __init__(self, num_shards: int, num_elements: int, device: torch.device | str = "cpu") -> None:
        self.num_shards = num_shards
        self.num_elements = num_elements
        self.device = torch.device(device)
        self._sum = torch.zeros(num_elements, device=self.device)

    def clear(self) -> None:
        """Forget every summand."""
        self._sum.zero_()

    def add(self, shard: int, gradient: Tensor) -> None:
        """Add the gradient of a micro-shard.

        Raises:
            ValueError: If the shard is out of range or the gradient is not float32 `[n]`.
        """
        check_summand(self, shard, gradient)
        self._sum += gradient

    def total(self, collectives: Collectives | None) -> Tensor:
        """Return the sum `[n]` over all ranks; None is a world of one."""
        if collectives is not None and collectives.world_size > 1:
            collectives.all_reduce(self._sum)
        return self._sum


def check_summand(target: GradientSum, shard: int, gradient: Tensor) -> None:
    """Refuse what would silently change a sum: a foreign shard number, another shape, another dtype."""
    if not 0 <= shard < target.num_shards:
        raise ValueError(f"micro-shard {shard} is not among the {target.num_shards} of a step")
    if gradient.shape != (target.num_elements,) or gradient.dtype != torch.float32:
        raise ValueError(
            f"a gradient must be float32 [{target.num_elements}], not {gradient.dtype} {list(gradient.shape)}"
        )


def gradient_sum(
    kind: Literal["exact", "fast"], num_shards: int, num_elements: int, device: torch.device | str = "cpu"
) -> GradientSum:
    """Return the sum that a recipe's key `reduction` names."""
    sums: dict[str, type[ShardTree | LocalSum]] = {"exact": ShardTree, "fast": LocalSum}
    return sums[kind](num_shards, num_elements, device)


def sum_scalars(scalars: Tensor, collectives: Collectives | None, device: torch.device) -> Tensor:
    """Return `[M, k]` float64 with the rows of all ranks; each row is non-zero on at most one rank.

    Adding zeros is exact, so the bits are those of the rank that computed the row. (A negative zero becomes zero,
    in a world of one as well.)
    """
    complete = scalars.to(device, torch.float64, copy=True) + 0.0
    if collectives is not None and collectives.world_size > 1:
        collectives.all_reduce(complete)
    return complete.cpu()
