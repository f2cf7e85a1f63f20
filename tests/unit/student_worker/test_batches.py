"""Samples become rows: in one order for labels, requests and logits alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from stillhouse.asking import Asking
from stillhouse.data import Order
from stillhouse.encodings import Dense
from stillhouse.request import All, Explicit
from student_worker.batches import Counts, count, make_batch
from student_worker.steps import Steps

ASKING = Asking(Dense(), 2.0, 20, "f" * 32)


def test_rows_run_through_samples_and_positions_in_order(make_sample: Any) -> None:
    samples = [make_sample([5, 6, 7, 8], masked=[1]), make_sample([1, 2])]
    batch = make_batch(samples)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [1, 2, 0, 0]]
    assert batch.rows.tolist() == [0, 2, 4]
    assert batch.labels.tolist() == [6, 8, 2]


def test_positions_restart_with_each_document_and_run_on_through_padding(make_sample: Any) -> None:
    samples = [make_sample(list(range(6)), segments=(2, 3, 1)), make_sample([1, 2, 3, 4], segments=(3, 1))]
    assert make_batch(samples).position_ids.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2]]


def test_counts_are_those_of_the_whole_batch(make_sample: Any) -> None:
    sample = make_sample([1, 2, 3])
    labels = sample.labels.copy()
    labels[0] = -100
    half = type(sample)(sample.token_ids, labels, sample.mask, sample.segment_lengths)
    assert count([sample, half]) == Counts(num_valid=4, num_labelled=3, num_tokens=6)


def test_a_request_asks_for_the_rows_and_nothing_else(make_sample: Any) -> None:
    everything = make_sample([1, 2, 3])
    everything = type(everything)(everything.token_ids, everything.labels, np.ones(3, bool), (1, 2))
    nothing = make_sample([4, 5], masked=[0])
    request = ASKING.request([everything, nothing, make_sample([6, 7, 8], masked=[1])])
    assert [sequence.token_ids for sequence in request.sequences] == [(1, 2, 3), (6, 7, 8)]
    assert request.sequences[0].segment_lengths == (1, 2)
    assert request.sequences[0].positions == All()
    assert request.sequences[1].positions == Explicit((0,))
    assert (request.temperature, request.vocabulary_size, request.expected_fingerprint) == (2.0, 20, "f" * 32)


def test_micro_shards_part_a_step_in_order_and_leave_nothing_out(dataset: Any) -> None:
    order = Order(len(dataset), 3, dataset.fingerprint)
    steps = Steps(dataset, order, global_batch_size=6, micro_shards=4)
    for step in range(5):
        shards = [steps.shard(step, shard) for shard in range(4)]
        assert [len(shard) for shard in shards] == [1, 2, 1, 2]
        flat = [id(sample) for shard in shards for sample in shard]
        assert flat == [id(dataset[i]) for i in order.sample_ids(step * 6, 6).tolist()]
        assert steps.counts(step) == count([sample for shard in shards for sample in shard])
