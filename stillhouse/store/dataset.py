"""A store as a torch `IterableDataset`, for a `DataLoader` with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from torch.utils.data import IterableDataset, get_worker_info

from stillhouse.data.dataset import PartName
from stillhouse.data.order import Order
from stillhouse.store.reader import Store, open_store
from stillhouse.store.rows import StoredSample

CHUNK_SAMPLES: Final = 4096
"""How many indices of the order are computed at a time."""


class StoreDataset(IterableDataset[StoredSample]):
    """The samples of a store and their answers, each once, in the corpus' order or in a shuffled one.

        for sample in DataLoader(StoreDataset("store", shuffle=True), batch_size=None, num_workers=4):
            ...

    Worker w of n takes the positions w, w + n, ... of the order, so that a loader with `batch_size=None` gives all
    samples in the order in which one worker would. A `collate_fn` sees lists of `StoredSample`.

    Args:
        store: an open store, or the address of one. A share of a split capture gives the samples that it holds.
        part: train or held_out.
        shuffle: take them in the order in which training does, of `seed` and the epoch.
        seed: of that order.
        epoch: which pass over the samples; `set_epoch` names the next one before a loader is iterated again.

    Raises:
        StoreError: it cannot be opened, or has no such part.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        part: PartName = "train",
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self._store = store if isinstance(store, Store) else open_store(store)
        self._name: PartName = part
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = epoch
        self._store.part(part)

    def set_epoch(self, epoch: int) -> None:
        """Name the pass whose order is next; workers that persist keep the one that they began with."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._store.part(self._name).num_held

    def __iter__(self) -> Iterator[StoredSample]:
        part = self._store.part(self._name)
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for position, index in enumerate(index for index in self._indices() if part.has(index)):
            if position % step == first:
                yield part[index]

    def _indices(self) -> Iterator[int]:
        part = self._store.part(self._name)
        total = len(part)
        if not self._shuffle:
            yield from range(total)
            return
        order = Order(total, self._seed, part.fingerprint)
        start = self._epoch * total
        for at in range(start, start + total, CHUNK_SAMPLES):
            yield from order.sample_ids(at, min(CHUNK_SAMPLES, start + total - at)).tolist()
