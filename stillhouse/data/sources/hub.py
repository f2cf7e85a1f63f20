"""A dataset of the hub, or a folder or script that the `datasets` library opens, as a source.

`datasets` keeps what it has fetched in a cache of its own (HF_HOME; HF_HUB_OFFLINE and HF_TOKEN are honoured) and
maps it into memory, so that a corpus is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stillhouse.data.items import Item, Place
from stillhouse.data.sources.records import RecordReader
from stillhouse.data.spec import HUB_SCHEME, DataSpec
from stillhouse.errors import DataError

DEFAULT_SPLIT = "train"


def hub_content(name: str, spec: DataSpec) -> tuple[str, ...]:
    """Return what tells this dataset's content from any other's: configuration, split and the hash of its files."""
    builder = _asked(name, "load_dataset_builder", spec)
    return ("hub", str(builder.config_id), str(builder.hash), spec.dataset_split or DEFAULT_SPLIT)


def read_hub(name: str, spec: DataSpec) -> Iterator[Item]:
    """Yield what the rows of a hub dataset's split hold."""
    dataset = _asked(name, "load_dataset", spec, split=spec.dataset_split or DEFAULT_SPLIT)
    reader = RecordReader(spec)
    columns = reader.columns(list(dataset.column_names), Place(HUB_SCHEME + name))
    for number, record in enumerate(dataset.select_columns(list(columns)), start=1):
        yield reader.item(record, Place(HUB_SCHEME + name, "row", number))


def _asked(name: str, function: str, spec: DataSpec, **arguments: Any) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{HUB_SCHEME}{name} needs the datasets library: pip install 'stillhouse[hub]'") from error
    try:
        return getattr(datasets, function)(name, spec.dataset_config, revision=spec.dataset_revision, **arguments)
    # The library raises many kinds of its own and of its network's; each one means the same to the caller.
    except Exception as error:
        raise DataError(
            f"{HUB_SCHEME}{name} cannot be loaded ({type(error).__name__}: {error}); check the name, dataset_config, "
            "dataset_split and dataset_revision, HF_TOKEN for a private one, and the network (HF_HUB_OFFLINE=1 reads "
            "what was fetched before)"
        ) from error
