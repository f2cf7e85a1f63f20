"""What a capture will take: a small question is asked, timed, and written to memory as a shard would be.

Knows nothing of how that is shown.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow.parquet as pq

from stillhouse.capture.checked import Checked
from stillhouse.codec import encode_payload
from stillhouse.data import PackedDataset, Sample
from stillhouse.disk import shown
from stillhouse.encodings import Hidden
from stillhouse.errors import ConfigurationError
from stillhouse.payloads import Payload
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from stillhouse.store.columns import SAMPLE_COLUMNS
from stillhouse.store.shard import ShardWriter

PROBE_TOKENS = 1024
"""Asked about at most, besides one sample to warm up with: seconds on a processor, nothing on a GPU."""

JOURNAL_BYTES_PER_TOKEN = 9
"""Of ids, labels and mask, while a shard is not complete."""

SPARE = 1.05
"""The disk must have room for a little more than a few samples let expect."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What some samples took: on disk, as bytes of a payload, and in time.

    `sample_bytes` are those of ids, labels and the rest for each token, `answer_bytes` those of the answers for each
    position that is learnt; `payload_bytes` are the same answers as they travel.
    """

    sample_bytes: float
    answer_bytes: float
    payload_bytes: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to be done, and about what it takes; sizes in bytes."""

    samples: int
    tokens: int
    positions: int
    probe: Probe
    unfinished_bytes: int
    head_bytes: int

    @property
    def num_bytes(self) -> int:
        """What the store takes in the end."""
        return round(self.tokens * self.bytes_per_token) + self.head_bytes

    @property
    def bytes_per_token(self) -> float:
        """What a token takes, whether or not it is learnt."""
        return self.probe.sample_bytes + self.probe.answer_bytes * self.positions / max(1, self.tokens)

    @property
    def disk_bytes(self) -> int:
        """What they take at most on the way there."""
        return round(SPARE * self.num_bytes) + self.unfinished_bytes

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.tokens / self.probe.tokens_per_second


def take_probe(
    checked: Checked, dataset: PackedDataset, indices: Iterable[int], ask: Callable[[LogitsRequest], Answer]
) -> Probe:
    """Ask about the first of these samples, past the teacher's cache, which would answer sooner than the teacher can.

    Raises:
        TeacherError: there is no answer.
    """
    most = max(1, PROBE_TOKENS // checked.plan.block_size)
    samples = [dataset[index] for index in islice(indices, most)]
    asking = replace(checked.asking, cache_mode="bypass")
    ask(asking.request(samples[:1]))
    began = time.monotonic()
    payloads = ask(asking.request(samples)).payloads
    seconds = max(time.monotonic() - began, 1e-6)
    tokens = sum(len(sample.token_ids) for sample in samples)
    positions = sum(payload.num_positions for payload in payloads)
    of_samples, of_answers = _written_bytes(checked, dataset, samples, payloads)
    return Probe(
        sample_bytes=of_samples / tokens,
        answer_bytes=of_answers / positions,
        payload_bytes=sum(len(encode_payload(payload)) for payload in payloads) / positions,
        tokens_per_second=tokens / seconds,
    )


def make_estimate(checked: Checked, left: dict[PackedDataset, int], probe: Probe) -> Estimate:
    """Return the estimate of what is left: so many samples of each part."""
    tokens = positions = 0
    for dataset, count in left.items():
        share = count / len(dataset)
        tokens += round(share * _num_tokens(dataset))
        positions += round(share * dataset.part.num_learnt)
    plan, teacher = checked.plan, checked.teacher
    # Answers to neighbouring shards cross: two are in the making.
    unfinished = min(tokens, 2 * plan.samples_per_shard * plan.block_size)
    is_hidden = isinstance(checked.asking.encoding, Hidden)
    head = teacher.vocabulary_size * teacher.hidden_size * (2 if teacher.compute_dtype == "bfloat16" else 4)
    return Estimate(
        samples=sum(left.values()),
        tokens=tokens,
        positions=positions,
        probe=probe,
        unfinished_bytes=round(unfinished * (JOURNAL_BYTES_PER_TOKEN + probe.payload_bytes)),
        head_bytes=head if is_hidden else 0,
    )


def check_disk(estimate: Estimate, free: int, folder: str) -> None:
    """Refuse a capture that would end on a full disk.

    Raises:
        ConfigurationError: it would.
    """
    if estimate.disk_bytes > free:
        raise ConfigurationError(
            f"output_dir {folder}: what is left to capture needs about {shown(estimate.disk_bytes)} on the disk, and "
            f"{shown(free)} are free; free some, name another folder, choose a smaller encoding, or split it by --part"
        )


def _written_bytes(
    checked: Checked, dataset: PackedDataset, samples: list[Sample], payloads: tuple[Payload, ...]
) -> tuple[int, int]:
    """Return what the samples and what the answers take in row groups, without the footer that a shard has once."""
    file = io.BytesIO()
    writer = ShardWriter(file, checked.plan, dataset.name, 0)
    for sample, payload in zip(samples, payloads, strict=True):
        writer.add(sample, payload)
    writer.finish()
    metadata = pq.read_metadata(io.BytesIO(file.getvalue()))
    sizes = [0, 0]
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            sizes[name not in SAMPLE_COLUMNS] += column.total_compressed_size
    return sizes[0], sizes[1]


def _num_tokens(dataset: PackedDataset) -> int:
    """Return the tokens of all samples; only the last may be shorter than a block."""
    return (len(dataset) - 1) * dataset.block_size + len(dataset[-1].token_ids)
