"""What a cluster is made of, as numbers: a form of answer, a teacher's service, a machine, and how many of each.

The figures that a scenario stands on are in `scenarios`, each with its source. Knows nothing of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillhouse.cutting import MAX_PART_BYTES
from student_worker.fetching_ahead import PREFETCH_STEPS
from student_worker.prefetch import REQUESTS_IN_FLIGHT
from student_worker.recipe.schema import Recipe
from teacher_service.settings import CACHE_TIMEOUT_SECONDS, TeacherSettings


def setting(name: str) -> float:
    """Return what a setting of the teacher is unless somebody sets it."""
    return float(TeacherSettings.model_fields[name].default)


@dataclass(frozen=True, slots=True)
class Form:
    """A form of answer. `most_bytes` is what the teacher counts as held for a position before it has the answer."""

    name: str
    bytes_per_position: float
    most_bytes: float
    encode_seconds: float = 0.0
    """Of the teacher's model thread, for each position."""
    decode_seconds: float = 0.0
    """Of the student, for each position: from bytes to what the loss takes."""


@dataclass(frozen=True, slots=True)
class Service:
    """One teacher: what its model and its process take, and what it holds at most."""

    token_seconds: float
    """Of the model, for each token."""
    batch_seconds: float = 0.0
    """Of the model, for each batch, whatever is in it."""
    request_seconds: float = 0.0
    """Of the process' one event loop, for each request; a refusal costs it too."""
    sequence_seconds: float = 0.0
    """The same, for each sequence."""
    process_bytes_s: float = math.inf
    """How fast the process moves answers' bytes."""
    request_delay_seconds: float = 0.0
    """What a request takes beside all this, on both sides, while nobody is kept from anything."""
    max_batch_tokens: int = int(setting("max_batch_tokens"))
    max_queue_delay_seconds: float = setting("max_queue_delay_seconds")
    max_requests: int = int(setting("max_concurrent_requests"))
    max_queue_sequences: int = int(setting("max_queue_sequences"))
    max_queue_tokens: int = int(setting("max_queue_tokens"))
    max_held_bytes: int = int(setting("max_held_bytes"))


@dataclass(frozen=True, slots=True)
class Redis:
    """The Redis that all teachers share: one thread that commands and their bytes pass through."""

    value_seconds: float = 0.0
    bytes_s: float = math.inf
    max_value_bytes: float = setting("cache_max_value_bytes")
    timeout_seconds: float = CACHE_TIMEOUT_SECONDS
    """Beside the time that the bytes have at `SLOWEST_BYTES_S`; whoever waits longer computes."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One student worker."""

    parameters: float
    token_seconds: float
    """Forward, loss and backward."""
    step_seconds: float = 0.0
    """Of each step, whatever is in it: the quorum, the optimiser and the vote."""
    prefetch_steps: int = PREFETCH_STEPS
    prefetch_bytes: float = Recipe.model_fields["prefetch_bytes"].default
    requests_in_flight: int = REQUESTS_IN_FLIGHT


@dataclass(frozen=True, slots=True)
class Cluster:
    """A scenario. A step's work is M micro-shards of so many sequences, whoever takes part."""

    form: Form
    service: Service
    student: Worker
    redis: Redis | None = None
    """None where nothing is remembered."""
    teachers: int = 8
    students: int = 256
    cache_ratio: float = 0.0
    """What part of the sequences is in Redis already."""
    micro_shards: int = 512
    shard_sequences: int = 2
    sequence_tokens: int = 2048
    teacher_bytes_s: float = math.inf
    """Of a teacher's network, each way, and of the other machines' below."""
    student_bytes_s: float = math.inf
    redis_bytes_s: float = math.inf
    save_steps: int = 0
    """Steps from checkpoint to checkpoint; 0 is none."""
    save_seconds: float = 0.0
    """How long rank 0 keeps the others from their next step."""

    @property
    def shard_tokens(self) -> int:
        """Tokens of a micro-shard, which is what a student asks about at once."""
        return self.shard_sequences * self.sequence_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.micro_shards * self.shard_tokens

    @property
    def sequence_bytes(self) -> float:
        """Bytes of the answer to one sequence."""
        return self.sequence_tokens * self.form.bytes_per_position

    @property
    def is_remembered(self) -> bool:
        """Whether there is a Redis, and the answers are small enough for it."""
        return self.redis is not None and self.sequence_tokens * self.form.most_bytes <= self.redis.max_value_bytes

    @property
    def hits(self) -> float:
        """The part of the sequences that no model computes."""
        return self.cache_ratio if self.is_remembered else 0.0

    @property
    def part_sequences(self) -> int:
        """How many sequences the client asks about in one call."""
        return max(1, min(self.shard_sequences, int(MAX_PART_BYTES / (self.sequence_tokens * self.form.most_bytes))))
