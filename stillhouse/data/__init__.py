"""A corpus' way to training: sources -> tokenize -> packing -> dataset, and the order in which samples are taken.

`prepare` is the way in; `Order` says which of the samples a step takes. Names are fetched when they are first used, so
that a command's `--help`, which reads `DataSpec`, waits for no array library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.lazy_names import lazy_names

if TYPE_CHECKING:
    from stillhouse.data.dataset import PackedDataset, Prepared
    from stillhouse.data.order import Order
    from stillhouse.data.packing import NO_LABEL, Sample
    from stillhouse.data.preparation import Progress, prepare
    from stillhouse.data.spec import DataSpec

_HOME = {
    "DataSpec": "spec",
    "NO_LABEL": "packing",
    "Order": "order",
    "PackedDataset": "dataset",
    "Prepared": "dataset",
    "Progress": "preparation",
    "Sample": "packing",
    "prepare": "preparation",
}

__all__ = ["NO_LABEL", "DataSpec", "Order", "PackedDataset", "Prepared", "Progress", "Sample", "prepare"]

__getattr__, __dir__ = lazy_names(__name__, _HOME, __all__)
