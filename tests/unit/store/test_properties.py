"""Every payload that the codec can write goes through Parquet and back with not one bit changed, masked or not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.codec import encode_payload
from stillhouse.data.dataset import Part
from stillhouse.data.packing import Sample
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.fixtures import FixtureTeacher
from stillhouse.payload_header import Kind
from stillhouse.payloads import CandidateLogits, Payload
from stillhouse.store import StorePlan, TeacherIdentity
from stillhouse.store.checking import each_row
from stillhouse.store.shard import WRITER, ShardWriter
from tests.unit.codec.examples import random_payload

BLOCK = 24


def plan_for(encoding: str, *, samples: int, group: int, width: int, hidden: int, temperature: float) -> StorePlan:
    identity = TeacherIdentity.of(FixtureTeacher(max(width, 4)).describe()).model_copy(update={"hidden_size": hidden})
    tokens = samples * BLOCK
    return StorePlan(
        writer=WRITER,
        teacher=identity,
        encoding=encoding,
        temperature=temperature,
        vocabulary_size=width,
        tokenizer_fingerprint="",
        tokenizer_vocabulary_size=2**32,
        max_token_id=2**32 - 1,
        corpus="key",
        block_size=BLOCK,
        data={},
        train=Part(
            fingerprint="f",
            num_samples=samples,
            num_documents=1,
            num_tokens=tokens,
            num_learnt=tokens,
            skipped_samples=0,
        ),
        held_out=None,
        samples_per_shard=samples,
        samples_per_group=group,
    )


def encoding_of(payload: Payload, kind: Kind, value_type: Any, count: int) -> Encoding:
    match kind:
        case Kind.DENSE:
            return Dense(value_type)
        case Kind.HIDDEN:
            return Hidden(value_type)
        case Kind.TOP_K:
            return TopK(count, value_type)
        case Kind.SAMPLED:
            return Sampled(count, 7)
        case Kind.CANDIDATES:
            assert isinstance(payload, CandidateLogits)
            return Candidates(payload.token_ids.tolist(), value_type)
        case _:
            return Candidates((), value_type)


def random_sample(generator: np.random.Generator, length: int, positions: int) -> Sample:
    mask = np.zeros(length, np.bool_)
    mask[generator.choice(length, positions, replace=False)] = True
    ids = generator.integers(0, 2**32, length, dtype=np.uint32)
    labels = generator.integers(-100, 2**31, length)
    cut = int(generator.integers(1, length)) if length > 1 else 0
    return Sample(ids, labels, mask, (cut, length - cut) if cut else (length,))


VALUE_TYPES: dict[Kind, tuple[ValueType, ...]] = {
    Kind.DENSE: ("float32", "float16", "bfloat16"),
    Kind.HIDDEN: ("float32", "bfloat16"),
    Kind.TOP_K: ("float32", "float16"),
    Kind.SAMPLED: ("float32",),
    Kind.CANDIDATES: ("float32", "float16"),
    Kind.POSITION_CANDIDATES: ("float32", "float16"),
}


@pytest.mark.parametrize("kind", VALUE_TYPES, ids=lambda kind: kind.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_come_back_to_the_bit(kind: Kind, data: st.DataObject) -> None:
    value_type = data.draw(st.sampled_from(VALUE_TYPES[kind]))
    samples, group = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    width = data.draw(st.integers(1, 60))
    count = data.draw(st.integers(1, 80 if kind is Kind.SAMPLED else width))
    seed = data.draw(st.integers(0, 2**31))
    generator = np.random.default_rng(seed)
    rows: list[tuple[Sample, Payload]] = []
    for index in range(samples):
        length = BLOCK if index < samples - 1 else data.draw(st.integers(1, BLOCK))
        positions = data.draw(st.integers(1, length))
        # The temperature of a random payload goes by its seed modulo 7.
        own = seed if kind is Kind.CANDIDATES else seed + 7 * index
        payload = random_payload(kind, value_type, rows=positions, width=width, count=count, seed=own)
        rows.append((random_sample(generator, length, positions), payload))
    if kind is Kind.CANDIDATES:
        shared = rows[0][1].token_ids  # type: ignore[union-attr]
        for _, payload in rows:
            object.__setattr__(payload, "token_ids", shared)
    first = rows[0][1]
    temperature = float(getattr(first, "temperature", 1.0))
    encoding = encoding_of(first, kind, value_type, count)
    from stillhouse.encoding_text import format_encoding

    plan = plan_for(
        format_encoding(encoding), samples=samples, group=group, width=width, hidden=width, temperature=temperature
    )
    file = io.BytesIO()
    with ShardWriter(file, plan, "train", 0) as writer:
        for sample, payload in rows:
            writer.add(sample, payload)
        entry = writer.finish()
    assert entry.bytes == len(file.getvalue())
    found = list(each_row(io.BytesIO(file.getvalue()), plan, "train", 0))
    assert len(found) == samples
    for row, (sample, payload) in zip(found, rows, strict=True):
        assert encode_payload(row.payload) == encode_payload(payload)
        for name in ("token_ids", "labels", "mask"):
            assert np.array_equal(getattr(row, name), getattr(sample, name))
        assert row.segment_lengths == sample.segment_lengths


def test_statistics_at_a_temperature_are_stored_where_they_differ_by_a_bit_alone() -> None:
    payload = random_payload(Kind.TOP_K, "float16", rows=3, width=9, count=2, seed=0)
    zero = torch.zeros(3)
    for name in ("log_normalizer", "log_tail_mass", "tempered_log_tail_mass"):
        object.__setattr__(payload, name, zero)
    object.__setattr__(payload, "tempered_log_normalizer", -zero)
    temperature = float(payload.temperature)  # type: ignore[union-attr]
    plan = plan_for("top_k:2:f16", samples=1, group=1, width=9, hidden=0, temperature=temperature)
    file = io.BytesIO()
    with ShardWriter(file, plan, "train", 0) as writer:
        writer.add(random_sample(np.random.default_rng(0), BLOCK, 3), payload)
        writer.finish()
    (row,) = each_row(io.BytesIO(file.getvalue()), plan, "train", 0)
    assert encode_payload(row.payload) == encode_payload(payload)
