"""The exact sum: the same bits for every split of the shards."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.errors import ConfigurationError
from student_worker.elastic import reduction
from student_worker.elastic.reduction import (
    Block,
    Collectives,
    LocalSum,
    ShardTree,
    blocks_of,
    gradient_sum,
    shard_range,
    shard_ranges,
    sum_scalars,
)

T = TypeVar("T")


def reference(gradients: list[Tensor]) -> Tensor:
    if len(gradients) == 1:
        return gradients[0]
    half = len(gradients) // 2
    return reference(gradients[:half]) + reference(gradients[half:])


def rough_gradients(num_shards: int, num_elements: int, seed: int = 0) -> list[Tensor]:
    """Numbers of such different sizes that any other order of the sum gives other bits."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-6, 7, (num_shards, num_elements), generator=generator)
    return list(torch.randn(num_shards, num_elements, generator=generator) * scales)


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


class InMemory:
    """The collectives of threads in one process; an all-reduce adds in the order of ranks."""

    def __init__(
        self, rank: int, world_size: int, newcomers: int, board: list[list[Tensor]], barrier: threading.Barrier
    ) -> None:
        self.rank, self.world_size, self.newcomers = rank, world_size, newcomers
        self._board, self._barrier = board, barrier

    def _share(self, parts: list[Tensor]) -> list[list[Tensor]]:
        self._board[self.rank] = [part.clone() for part in parts]
        self._barrier.wait()
        shared = list(self._board)
        self._barrier.wait()
        return shared

    def all_reduce(self, tensor: Tensor) -> None:
        parts = [part for (part,) in self._share([tensor])]
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        tensor.copy_(total)

    def all_to_all(self, output: Tensor, source: Tensor, output_sizes: list[int], source_sizes: list[int]) -> None:
        shared = self._share(list(torch.split(source, source_sizes)))
        received = [parts[self.rank] for parts in shared]
        assert [len(part) for part in received] == output_sizes
        torch.cat(received, out=output)


def in_world(world_size: int, work: Callable[[Collectives], T], newcomers: int = 0) -> list[T]:
    board: list[list[Tensor]] = [[] for _ in range(world_size)]
    barrier = threading.Barrier(world_size, timeout=20)
    results: dict[int, T] = {}

    def run(rank: int) -> None:
        try:
            results[rank] = work(InMemory(rank, world_size, newcomers, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(world_size)]


def exact_total(collectives: Collectives, gradients: list[Tensor]) -> Tensor:
    tree = ShardTree(len(gradients), len(gradients[0]))
    ranges = shard_ranges(collectives.world_size, collectives.newcomers, len(gradients))
    for shard in ranges[collectives.rank]:
        tree.add(shard, gradients[shard])
    return tree.total(collectives).clone()


@given(st.integers(0, 64), st.integers(0, 64))
def test_blocks_tile_their_range_with_whole_subtrees(first: int, last: int) -> None:
    shards = range(first, last)
    blocks = blocks_of(shards)
    assert [shard for block in blocks for shard in range(block.start, block.start + block.size)] == list(shards)
    assert all(block.start % block.size == 0 and block.size & (block.size - 1) == 0 for block in blocks)
    assert not any(
        left.size == right.size and left.start % (2 * left.size) == 0 for left, right in itertools.pairwise(blocks)
    )


@given(st.integers(1, 40), st.integers(1, 128))
def test_ranges_share_out_every_shard_once_and_evenly(world_size: int, num_shards: int) -> None:
    ranges = [shard_range(rank, world_size, num_shards) for rank in range(world_size)]
    assert [shard for shards in ranges for shard in shards] == list(range(num_shards))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16, 64])
def test_one_worker_gives_the_binary_tree_over_the_shards(num_shards: int) -> None:
    gradients = rough_gradients(num_shards, 1000)
    tree = ShardTree(num_shards, 1000)
    for shard, gradient in enumerate(gradients):
        tree.add(shard, gradient)
    assert same_bits(tree.total(None), reference(gradients))


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 7])
def test_every_world_size_gives_the_same_bits(num_shards: int, world_size: int) -> None:
    gradients = rough_gradients(num_shards, 101)
    totals = in_world(world_size, lambda collectives: exact_total(collectives, gradients))
    assert all(same_bits(total, reference(gradients)) for total in totals)


@settings(max_examples=40, deadline=None)
@given(
    num_elements=st.integers(1, 40),
    piece=st.integers(1, 17),
    world_size=st.integers(2, 6),
    newcomers=st.integers(0, 5),
    levels=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_pieces_of_any_size_and_newcomers_of_any_number_give_the_same_bits(
    num_elements: int, piece: int, world_size: int, newcomers: int, levels: int, seed: int
) -> None:
    newcomers = min(newcomers, world_size - 1)
    gradients = rough_gradients(1 << levels, num_elements, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "PIECE_ELEMENTS", piece)
        totals = in_world(world_size, lambda collectives: exact_total(collectives, gradients), newcomers)
    assert all(same_bits(total, reference(gradients)) for total in totals)


def test_the_order_of_a_plain_sum_would_give_other_bits() -> None:
    gradients = rough_gradients(8, 1000)
    plain = torch.zeros(1000)
    for gradient in gradients:
        plain += gradient
    assert not same_bits(plain, reference(gradients))


def test_a_rank_holds_no_more_than_its_blocks() -> None:
    tree = ShardTree(16, 3)
    held = []
    for shard in range(16):
        tree.add(shard, torch.ones(3))
        held.append(len(tree.blocks))
    assert max(held) == 4
    assert [block for block, _ in tree.blocks] == [Block(0, 16)]


def test_summands_may_be_overwritten_and_a_tree_used_again() -> None:
    tree = ShardTree(4, 2)
    scratch = torch.empty(2)
    for _ in range(2):
        tree.clear()
        for shard in range(4):
            tree.add(shard, scratch.fill_(shard + 1))
        assert tree.total(None).tolist() == [10.0, 10.0]


@pytest.mark.parametrize("num_shards", [0, 3, 12, -4])
def test_a_number_of_shards_that_is_no_power_of_two_is_refused(num_shards: int) -> None:
    with pytest.raises(ConfigurationError, match=f"micro_shards is {num_shards}"):
        ShardTree(num_shards, 2)


def test_shards_out_of_order_are_refused() -> None:
    tree = ShardTree(4, 1)
    tree.add(0, torch.ones(1))
    with pytest.raises(ValueError, match="micro-shard 2 came where 1 was due"):
        tree.add(2, torch.ones(1))


@pytest.mark.parametrize("gradient", [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(1, 2)])
@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_a_gradient_of_another_shape_or_dtype_is_refused(kind: str, gradient: Tensor) -> None:
    target = gradient_sum("exact" if kind == "exact" else "fast", 4, 2)
    with pytest.raises(ValueError, match="must be float32"):
        target.add(0, gradient)
    with pytest.raises(ValueError, match="micro-shard 4 is not among"):
        target.add(4, torch.ones(2))


def test_a_missing_shard_is_refused_rather_than_counted_as_zero() -> None:
    tree = ShardTree(4, 1)
    for shard in range(3):
        tree.add(shard, torch.ones(1))
    with pytest.raises(ValueError, match="not its shards"):
        tree.total(None)


def test_the_fast_sum_adds_all_shards_of_all_ranks() -> None:
    gradients = rough_gradients(8, 50)

    def work(collectives: Collectives) -> Tensor:
        local = LocalSum(8, 50)
        for shard in shard_range(collectives.rank, collectives.world_size, 8):
            local.add(shard, gradients[shard])
        return local.total(collectives)

    for total in in_world(3, work):
        torch.testing.assert_close(total, reference(gradients))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_scalars_are_complete_and_exact_on_every_rank(world_size: int) -> None:
    rows = torch.tensor([[0.1, 1e300], [-0.0, 3.0], [1 / 3, -1e-300], [7.0, 0.0]], dtype=torch.float64)

    def work(collectives: Collectives) -> Tensor:
        mine = torch.zeros_like(rows)
        shards = shard_range(collectives.rank, world_size, 4)
        mine[shards.start : shards.stop] = rows[shards.start : shards.stop]
        return sum_scalars(mine, collectives, torch.device("cpu"))

    expected = sum_scalars(rows, None, torch.device("cpu"))
    assert torch.equal(expected, rows)
    assert all(torch.equal(total.view(torch.int64), expected.view(torch.int64)) for total in in_world(world_size, work))
