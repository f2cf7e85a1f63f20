"""A corpus' way to training: sources -> tokenize -> packing -> dataset, and the order in which samples are taken.

`prepare` is the way in; `Order` says which of the samples a step takes.
"""

from stillhouse.data.dataset import PackedDataset, Prepared
from stillhouse.data.order import Order
from stillhouse.data.packing import NO_LABEL, Sample
from stillhouse.data.preparation import Progress, prepare
from stillhouse.data.spec import DataSpec

__all__ = ["NO_LABEL", "DataSpec", "Order", "PackedDataset", "Prepared", "Progress", "Sample", "prepare"]
