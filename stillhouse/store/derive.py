"""Sparse answers at any temperature from a store of DENSE or HIDDEN ones, without the teacher.

The encoder is the teacher's own, so that from exact logits (DENSE float32) come its very bytes. From HIDDEN the logits
are first rebuilt with the head, on this host and in the dtype that the teacher computes in: docs/store-format.md says
how near they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from stillhouse.data.dataset import PartName
from stillhouse.encode import encode_logits
from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import StoreError
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead, Payload
from stillhouse.store.checking import file_entry
from stillhouse.store.extras import write_tokens
from stillhouse.store.files import MANIFEST, TOKENS, write_file, written_aside
from stillhouse.store.folders import new_folder
from stillhouse.store.manifest import Manifest, Shard, StorePlan
from stillhouse.store.reader import Store
from stillhouse.store.rows import StoredSample
from stillhouse.store.shard import WRITER, ShardWriter, shard_name
from stillhouse.store.sizes import group_samples, shard_samples

HEAD_CHUNK_ROWS: Final = 256
"""Rows of logits at a time: what the teacher service runs by default, since a product's low bits follow its shape."""


def derive(
    address: str | Path | Store,
    out: Path | str,
    encoding: Encoding,
    *,
    temperature: float = 1.0,
    samples_per_shard: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Make a store of `Sampled` or `TopK` answers, or of rounded ones, from one that holds all logits.

    Args:
        address: a store of `Dense` or `Hidden` answers.
        out: the store to be made: new, or empty.
        encoding: the form of its answers.
        temperature: T of its answers.
        samples_per_shard: by default as a capture has it.
        progress: called with the samples done, and those in all.

    Raises:
        StoreError: a store from which this cannot be made, one that is damaged, or a fault of writing; nothing is left
            of the new folder then.
        InvalidRequestError: a k over N, or a logit that the value type cannot hold.
    """
    store = address if isinstance(address, Store) else Store(address)
    _check_derivable(store, encoding)
    source = store.manifest.plan
    shape = (encoding, source.vocabulary_size, source.teacher.hidden_size, source.block_size)
    shard_size = samples_per_shard or shard_samples(*shape)
    plan = source.model_validate(
        {
            **source.model_dump(),
            "writer": WRITER,
            "encoding": format_encoding(encoding),
            "temperature": temperature,
            "derived_from": source.derived_from or source.encoding,
            "samples_per_shard": shard_size,
            "samples_per_group": min(group_samples(*shape), shard_size),
        }
    )
    rebuilt = _Logits(store.output_head())
    total, done = sum(plan.part(name).num_samples for name in plan.parts), 0
    with new_folder(out) as folder:
        shards: dict[PartName, tuple[Shard, ...]] = {}
        for name in plan.parts:
            entries = []
            for number in range(plan.num_shards(name)):
                entries.append(_write_shard(folder, plan, name, number, store, rebuilt))
                done += len(plan.samples_of(name, number))
                if progress is not None:
                    progress(done, total)
            shards[name] = tuple(entries)
        if store.tokens:
            write_tokens(folder, store.tokens)
        manifest = Manifest(plan=plan, shards=shards, tokens=file_entry(folder / TOKENS) if store.tokens else None)
        write_file(folder / MANIFEST, manifest.to_json())
    return manifest


def _check_derivable(store: Store, encoding: Encoding) -> None:
    if not isinstance(store.encoding, Dense | Hidden):
        raise StoreError(
            f"{store.address} holds {store.manifest.plan.encoding} answers, which are but a part of the logits: "
            "other answers are derived from dense or hidden ones"
        )
    if not isinstance(encoding, TopK | Sampled):
        raise StoreError(f"sampled and top_k answers can be derived; got {format_encoding(encoding)}")


def _write_shard(folder: Path, plan: StorePlan, part: PartName, number: int, store: Store, logits: _Logits) -> Shard:
    with written_aside(folder / shard_name(part, number)) as file, ShardWriter(file, plan, part, number) as writer:
        for index in plan.samples_of(part, number):
            row = store.part(part)[index]
            writer.add(row.sample, _answer(row, plan, logits))
        return writer.finish()


def _answer(row: StoredSample, plan: StorePlan, logits: _Logits) -> Payload:
    return encode_logits(
        logits.chunks(row.payload),
        plan.answer_encoding,
        sequence=row.sequence,
        temperature=plan.temperature,
        vocabulary_size=plan.vocabulary_size,
    )


class _Logits:
    """Rebuilds the logits of answers that hold them all."""

    def __init__(self, head: OutputHead | None) -> None:
        self._head = head

    def chunks(self, payload: Payload) -> Iterator[Tensor]:
        """Yield `[p, V]` row chunks of a payload's logits."""
        match payload:
            case DenseLogits(logits):
                yield from torch.split(logits, HEAD_CHUNK_ROWS)
            case HiddenStates(hidden) if self._head is not None:
                # The whole head as the teacher runs it, not its leading N rows: the shape is in the low bits.
                yield from (self._head.logits(rows) for rows in torch.split(hidden, HEAD_CHUNK_ROWS))
            case _:
                raise StoreError("the store holds no output head, without which its answers say nothing")
