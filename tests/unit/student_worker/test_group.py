"""A single worker is a group like any other; addresses are understood or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import ConfigurationError
from student_worker.elastic.group import Membership, SoloGroup
from student_worker.elastic.network import interface_of, local_address, split_address
from student_worker.elastic.reduction import ShardTree


class NoState:
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        raise AssertionError(f"a single worker heals from nobody: {tensors}, {metadata}")


def test_a_single_worker_computes_every_shard_and_counts_its_steps_from_the_checkpoint() -> None:
    with SoloGroup(NoState(), step=7) as group:
        tree = ShardTree(4, 2)
        for step in (7, 8):
            membership = group.start_step()
            assert membership == Membership(step=step, rank=0, world_size=1)
            assert membership.shards(step, 4) == range(4)
            tree.clear()
            for shard in range(4):
                tree.add(shard, torch.full((2,), float(shard)))
            gradient, scalars = group.reduce(tree, torch.ones(4, 1, dtype=torch.float64))
            assert gradient.tolist() == [6.0, 6.0]
            assert scalars.sum().item() == 4.0
            assert group.commit()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.4:29510", ("10.0.0.4", 29510)),
        ("http://lighthouse:80/", ("lighthouse", 80)),
        ("[::1]:29510", ("::1", 29510)),
    ],
)
def test_addresses_are_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["", "host", "host:", ":29510", "host:port", "host:0", "host:65536"])
def test_an_address_without_host_or_port_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must be HOST:PORT, such as 10\.0\.0\.4:29510"):
        split_address(address)


def test_the_way_to_this_host_is_its_loopback_interface() -> None:
    assert local_address("127.0.0.1", 29510) == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid:29510 cannot be reached"):
        local_address("no-such-host.invalid", 29510)
