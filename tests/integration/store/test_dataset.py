"""A loader's workers give every sample once, in one order, whatever their number."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from stillhouse import StoreDataset, open_store
from stillhouse.codec import encode_payload
from stillhouse.data import Order
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, make_store, small_corpus


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    make_store(folder / "store", small_corpus(folder / "corpus"), teacher=RandomTeacher(VOCABULARY))
    return folder / "store"


def bytes_of(samples: object) -> list[bytes]:
    return [encode_payload(sample.payload) for sample in samples]  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_every_sample_comes_once_and_in_order(store: Path, workers: int, start: str) -> None:
    if workers == 0 and start == "spawn":
        pytest.skip("nothing is started")
    opened = open_store(store)
    expected = bytes_of(opened)
    loader = DataLoader(
        StoreDataset(opened),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=start if workers else None,
    )
    found = list(loader)
    assert bytes_of(found) == expected
    assert len(loader) == len(found) == 33


def test_shuffled_it_is_the_order_of_training(store: Path) -> None:
    dataset = StoreDataset(store, shuffle=True, seed=3, epoch=1)
    opened = open_store(store)
    order = Order(33, 3, opened.train.fingerprint)
    assert bytes_of(dataset) == bytes_of(opened[int(index)] for index in order.sample_ids(33, 33))
    dataset.set_epoch(2)
    assert bytes_of(dataset) == bytes_of(opened[int(index)] for index in order.sample_ids(66, 33))
    assert len(list(StoreDataset(store, part="held_out"))) == 5


def test_batches_are_lists_of_samples(store: Path) -> None:
    loader: DataLoader[Any] = DataLoader(StoreDataset(store), batch_size=8, collate_fn=list)
    assert [len(batch) for batch in loader] == [8, 8, 8, 8, 1]


def test_a_store_can_be_sent_to_another_process(store: Path) -> None:
    opened = open_store(store)
    again = pickle.loads(pickle.dumps(opened))  # noqa: S301 - our own bytes, as a spawned worker gets them
    assert bytes_of([again[4]]) == bytes_of([opened[4]])
    assert again.manifest == opened.manifest
