"""The sums over real gloo connections, and what a lost peer does to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from stillhouse.errors import ConfigurationError
from student_worker.elastic.collectives import ExchangeError, ProcessGroupCollectives, process_group
from student_worker.elastic.introductions import Introduction, RunMismatchError
from student_worker.elastic.network import use_interface_of
from student_worker.elastic.reduction import LocalSum, ShardTree, shard_range, shard_ranges, sum_scalars

T = TypeVar("T")
TIMEOUT = timedelta(seconds=20)


def connected(
    world_size: int,
    work: Callable[[ProcessGroupCollectives, Callable[[], None]], T],
    newcomers: int = 0,
    gpu: str = "",
) -> list[T]:
    """Run `work` on every rank of a real group, each in a thread; it is handed a way to leave, too."""
    results: list[T] = []
    for result in introduced([{"recipe": "ours"}] * world_size, work, newcomers, gpu):
        assert not isinstance(result, ConfigurationError)
        results.append(result)
    return results


def introduced(
    runs: list[dict[str, str]],
    work: Callable[[ProcessGroupCollectives, Callable[[], None]], T],
    newcomers: int = 0,
    gpu: str = "",
) -> list[T | ConfigurationError]:
    """The same for ranks that may belong to different runs: one that is refused has the refusal for a result."""
    use_interface_of("127.0.0.1")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results: dict[int, T | ConfigurationError] = {}

    def run(rank: int) -> None:
        group = process_group(torch.device("cuda" if gpu else "cpu"), TIMEOUT)
        group.introduction = Introduction(runs[rank], token="token", step=0 if rank < newcomers else 9, device=gpu)
        group.max_workers = len(runs)
        try:
            group.configure(f"127.0.0.1:{store.port}/quorum", f"worker-{rank}", rank, len(runs))
            results[rank] = work(
                ProcessGroupCollectives(
                    group, group.rank, group.world_size, group.newcomers, through_host=group.through_host
                ),
                group.abort,
            )
        except ConfigurationError as error:
            results[rank] = error
        finally:
            group.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(runs))]


def gradients(num_shards: int, num_elements: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    scales = 10.0 ** torch.randint(-6, 7, (num_shards, num_elements), generator=generator)
    return list(torch.randn(num_shards, num_elements, generator=generator) * scales)


@pytest.mark.parametrize("gpu", ["", "GPU-that-all-share"])
@pytest.mark.parametrize(("world_size", "newcomers"), [(2, 0), (3, 0), (4, 0), (2, 1), (3, 1), (4, 2), (4, 3)])
def test_the_exact_sum_over_gloo_has_the_bits_of_one_worker(world_size: int, newcomers: int, gpu: str) -> None:
    summands = gradients(8, 100_003)
    alone = ShardTree(8, 100_003)
    for shard, summand in enumerate(summands):
        alone.add(shard, summand)
    expected = alone.total(None)
    rows = torch.rand(8, 3, dtype=torch.float64)

    def work(collectives: ProcessGroupCollectives, leave: Callable[[], None]) -> tuple[Tensor, Tensor]:
        del leave
        tree = ShardTree(8, 100_003)
        mine = torch.zeros_like(rows)
        for shard in shard_ranges(world_size, newcomers, 8)[collectives.rank]:
            tree.add(shard, summands[shard])
            mine[shard] = rows[shard]
        return tree.total(collectives), sum_scalars(mine, collectives, tree.device)

    for total, scalars in connected(world_size, work, newcomers, gpu):
        assert torch.equal(total, expected)
        assert torch.equal(scalars, rows)


def test_the_fast_sum_over_gloo_is_the_same_to_rounding() -> None:
    summands = gradients(4, 1000)

    def work(collectives: ProcessGroupCollectives, leave: Callable[[], None]) -> Tensor:
        del leave
        local = LocalSum(4, 1000)
        for shard in shard_range(collectives.rank, 2, 4):
            local.add(shard, summands[shard])
        return local.total(collectives)

    for total in connected(2, work):
        torch.testing.assert_close(total, torch.stack(summands).sum(0))


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_peer_that_leaves_is_an_error_at_once_and_not_after_the_timeout(world_size: int) -> None:
    def work(collectives: ProcessGroupCollectives, leave: Callable[[], None]) -> float:
        tree = ShardTree(4, 1000)
        for shard in shard_range(collectives.rank, world_size, 4):
            tree.add(shard, torch.ones(1000))
        started = time.monotonic()
        if collectives.rank == 0:
            leave()
        else:
            with pytest.raises(ExchangeError, match=f"over {world_size} workers failed"):
                tree.total(collectives)
            leave()
        return time.monotonic() - started

    assert max(connected(world_size, work)) < TIMEOUT.total_seconds() / 2


def test_a_stranger_is_left_out_and_the_others_sum_without_it() -> None:
    def work(collectives: ProcessGroupCollectives, leave: Callable[[], None]) -> Tensor:
        del leave
        ones = torch.full((3,), float(collectives.rank + 1))
        collectives.all_reduce(ones)
        return ones

    runs = [{"recipe": "ours"}, {"recipe": "theirs"}, {"recipe": "ours"}]
    first, stranger, last = introduced(runs, work)
    assert isinstance(stranger, RunMismatchError)
    assert isinstance(first, Tensor)
    assert isinstance(last, Tensor)
    assert first.tolist() == last.tolist() == [3.0] * 3
