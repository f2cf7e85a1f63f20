"""A corpus' way to training: sources -> tokenize -> packing -> dataset, and the order in which samples are taken."""

from stillhouse.data.order import Order

__all__ = ["Order"]
