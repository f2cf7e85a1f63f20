"""A store as a folder that `datasets.load_from_disk` opens: Arrow files that are mapped, a split for each part.

Columns are those of the shards, but for bfloat16, which becomes float32: nothing else in that world knows it. Written
shard by shard, so that memory stays bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.data.dataset import PartName
from stillhouse.errors import StoreError
from stillhouse.store.files import writing
from stillhouse.store.folders import new_folder
from stillhouse.store.manifest import StorePlan
from stillhouse.store.reader import Store
from stillhouse.store.shard import shard_schema

_BFLOAT16 = pa.uint16()


def export(
    address: str | Path | Store,
    out: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
    options: dict[str, Any] | None = None,
) -> None:
    """Write a store as a `datasets` folder.

    Args:
        address: of the store, or of one share of a split one.
        out: the folder to be made: new, or empty.
        progress: called with the shards written, and those in all.
        options: for fsspec's file system.

    Raises:
        StoreError: no store, a damaged one, or a fault of writing; nothing is left of the new folder then.
    """
    store = address if isinstance(address, Store) else Store(address, allow_partial=True, options=options)
    plan = store.manifest.plan
    total, done = sum(map(len, store.manifest.shards.values())), 0
    # A share may have no shard of a part, and `datasets` opens no split without a file.
    splits = [name for name in plan.parts if store.manifest.shards[name]]
    if not splits:
        raise StoreError(f"{store.address} holds no shard, as there are more shares than shards: nothing to export")
    with new_folder(out) as folder:
        for name in splits:
            split = folder / name
            files = []
            numbers = plan.shards_of(name, store.manifest.share)
            with writing(split):
                split.mkdir()
                for place, number in enumerate(numbers):
                    files.append(f"data-{place:05d}-of-{len(numbers):05d}.arrow")
                    _write_shard(split / files[-1], store, name, number)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                _write_state(split, name, files, store)
        with writing(folder):
            (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}), encoding="utf-8")


def _write_shard(place: Path, store: Store, part: PartName, number: int) -> None:
    plan = store.manifest.plan
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, _schema(plan)) as writer:
        for batch in store.batches(part, number):
            columns = [_without_bfloat16(column) for column in batch.columns]
            writer.write_batch(pa.record_batch(columns, schema=_schema(plan)))


def _write_state(split: Path, name: PartName, files: list[str], store: Store) -> None:
    from datasets import DatasetInfo, Features

    plan = store.manifest.plan
    text = f"{plan.encoding} answers of {plan.teacher.model} ({plan.teacher.fingerprint}) at T = {plan.temperature:g}"
    info = DatasetInfo(features=Features.from_arrow_schema(_schema(plan)), description=text)
    info.write_to_directory(str(split))
    state: dict[str, Any] = {
        "_data_files": [{"filename": file} for file in files],
        "_fingerprint": plan.part(name).fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    (split / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def _schema(plan: StorePlan) -> pa.Schema:
    return pa.schema([pa.field(field.name, _type(field.type)) for field in shard_schema(plan)])


def _type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_type(kind.value_type))
    return pa.float32() if kind == _BFLOAT16 else kind


def _without_bfloat16(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type):
        inner = _without_bfloat16(column.values)
        mask = column.is_null() if column.null_count else None
        return pa.ListArray.from_arrays(column.offsets, inner, type=pa.list_(inner.type), mask=mask)
    if column.type == _BFLOAT16:
        return pa.array((column.to_numpy().astype(np.uint32) << 16).view(np.float32))
    return column
