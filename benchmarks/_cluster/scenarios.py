"""The cluster that is asked about: its machines, models and forms of answer, each figure with where it is from.

"assumed" is a round figure of the kind of machine, not a measurement; whoever has another puts it in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks._cluster.parts import Cluster, Form, Redis, Service, Worker
from benchmarks._cost.model import TrainingEncoding, payload_bytes
from stillhouse.encodings import Dense, Hidden, Sampled, TopK
from stillhouse.payload_header import Header, Kind

MEGA, GIGA, TERA = 1e6, 1e9, 1e12


@dataclass(frozen=True, slots=True)
class Machines:
    """Machines with one H100 each for teachers and students, and the network between them."""

    flop_s: float = 989 * TERA
    """bfloat16, dense: the H100 SXM's data sheet."""
    memory_bytes_s: float = 3.35 * TERA
    """The same."""
    teacher_utilisation: float = 0.5
    """Assumed: the part of it that a forward pass over full batches reaches."""
    student_utilisation: float = 0.4
    """Assumed: forward and backward of a small model."""
    host_bytes_s: float = 25 * GIGA
    """Assumed: between a device and its host's memory, PCIe 4 with 16 lanes."""
    network_bytes_s: float = 12.5 * GIGA
    """Assumed: 100 Gbit/s for each machine, each way."""


@dataclass(frozen=True, slots=True)
class Models:
    """A teacher of 8 billion weights and a student of half a billion, of one vocabulary."""

    teacher_weights: float = 8.03 * GIGA
    """Llama 3.1 8B, as its configuration says, and the next two."""
    teacher_hidden: int = 4096
    vocabulary: int = 128_256
    student_weights: float = 0.5 * GIGA
    distinct: float = 17.0
    """Ids among 50 draws at T = 1, measured on real text."""


@dataclass(frozen=True, slots=True)
class Software:
    """What Stillhouse itself takes of a host's core."""

    request_seconds: float = 2e-3
    """`python -m benchmarks run cost`: `request_seconds`."""
    sequence_seconds: float = 1.3e-4
    """`python -m benchmarks run cache_path`: 16 remembered answers in 2.2 ms."""
    bytes_s: float = 400 * MEGA
    """`cost`: `bytes_s`, of remembered answers through the service."""
    redis_value_seconds: float = 9e-6
    """`cache_path`: a pipelined MGET of 16 small values; the next is that of large ones."""
    redis_bytes_s: float = 1.2 * GIGA
    quorum_seconds: float = 0.05
    """Assumed: agreeing on who takes part, and the vote."""
    checkpoint_bytes: float = 12.0
    """For each trained parameter: the weights and AdamW's moments (docs/checkpoints.md)."""


@dataclass(frozen=True, slots=True)
class Coding:
    """What one form takes beside its bytes: `passes` of memory over [positions, V] on the device, and of a core."""

    name: str
    encoding: TrainingEncoding
    passes: float
    """`cost`: the time to encode over that of a memory pass of as many floats."""
    code_seconds: float
    """`cost`: from tensors to bytes, for each position, at the V or D of `Models`; of draws for 17 ids, not its 31."""


CODINGS = (
    Coding("sampled:50", Sampled(50), 8.5, 7e-6),
    Coding("top_k:64", TopK(64), 7.0, 2e-6),
    Coding("hidden:bf16", Hidden("bfloat16"), 0.0, 2e-6),
    Coding("dense:bf16", Dense("bfloat16"), 2.0, 60e-6),
)
PASS_BYTES = 12
"""Two floats read and one written."""

MACHINES, MODELS, SOFTWARE = Machines(), Models(), Software()
TEACHERS, STUDENTS, CACHE_RATIOS = (4, 8, 16), (64, 128, 256, 512), (0.0, 0.9, 1.0)


def form(coding: Coding, machines: Machines = MACHINES, models: Models = MODELS) -> Form:
    """Return what a form of answer costs each side, for long sequences."""
    rows, encoding = 2048, coding.encoding
    known = {"vocabulary": models.vocabulary, "hidden": models.teacher_hidden}
    num_bytes = payload_bytes(encoding, rows, **known, distinct=models.distinct) / rows
    most = num_bytes
    if isinstance(encoding, Sampled):
        most = Header(Kind.SAMPLED, None, rows, models.vocabulary, encoding.draws, 1.0).size_bounds()[1] / rows
    encode = coding.passes * PASS_BYTES * models.vocabulary / machines.memory_bytes_s
    # What is not small crosses between device and host; hidden states become logits by the teacher's head.
    across = num_bytes / machines.host_bytes_s
    rebuild = 0.0
    if isinstance(encoding, Hidden):
        rebuild = 2 * models.teacher_hidden * models.vocabulary / (machines.flop_s * machines.student_utilisation)
    return Form(coding.name, num_bytes, most, encode + across + coding.code_seconds, across + rebuild)


def cluster(coding: Coding, machines: Machines = MACHINES, models: Models = MODELS) -> Cluster:
    """Return 8 teachers and 256 students of these machines that train by this form, all of the text being new."""
    software = SOFTWARE
    update_seconds = 28 * models.student_weights / machines.memory_bytes_s  # weights, gradient and moments
    return Cluster(
        form=form(coding, machines, models),
        service=Service(
            token_seconds=2 * models.teacher_weights / (machines.flop_s * machines.teacher_utilisation),
            request_seconds=software.request_seconds,
            sequence_seconds=software.sequence_seconds,
            process_bytes_s=software.bytes_s,
        ),
        student=Worker(
            parameters=models.student_weights,
            token_seconds=6 * models.student_weights / (machines.flop_s * machines.student_utilisation),
            step_seconds=software.quorum_seconds + update_seconds,
        ),
        redis=Redis(value_seconds=software.redis_value_seconds, bytes_s=software.redis_bytes_s),
        teacher_bytes_s=machines.network_bytes_s,
        student_bytes_s=machines.network_bytes_s,
        redis_bytes_s=machines.network_bytes_s,
        save_steps=500,
        save_seconds=software.checkpoint_bytes * models.student_weights / machines.host_bytes_s,
    )


def grid(*, quick: bool = False) -> Iterator[Cluster]:
    """Return every scenario of the table: forms, numbers of teachers and students, and parts remembered."""
    for coding in CODINGS:
        base = cluster(coding)
        # An answer that Redis would not take is computed each time, and its refusals take long to simulate.
        for ratio in CACHE_RATIOS if base.is_remembered else (0.0,):
            for teachers in (8,) if quick else TEACHERS:
                few = quick or teachers != 8 or not base.is_remembered
                for students in (256,) if few else STUDENTS:
                    yield replace(base, teachers=teachers, students=students, cache_ratio=ratio)


@dataclass(frozen=True, slots=True)
class Change:
    """A cluster, and in words what is changed in the one before it."""

    name: str
    what: str
    cluster: Cluster


def changes() -> Iterator[Change]:
    """Return what is changed, one thing after the other, each where the one before broke."""
    sampled, top_k, hidden = (cluster(coding) for coding in CODINGS[:3])
    yield Change("new", "sampled:50, new text", sampled)
    yield Change("teachers", "twice the teachers", replace(sampled, teachers=16))
    yield Change("mostly", "8 teachers again, 90% remembered", replace(sampled, cache_ratio=0.9))
    remembered = replace(sampled, cache_ratio=1.0)
    yield Change("remembered", "all remembered", remembered)
    longer = replace(remembered, shard_sequences=8)
    yield Change("longer", "steps of 4 times the tokens", longer)
    patient = _patient(longer)
    yield Change("patient", "cache_timeout_seconds 1", patient)
    roomy = replace(patient, service=replace(patient.service, max_queue_tokens=4 * patient.service.max_queue_tokens))
    yield Change("roomy", "max_queue_tokens 4 times the default", roomy)
    fast = cluster(CODINGS[0], replace(MACHINES, network_bytes_s=4 * MACHINES.network_bytes_s))
    yield Change(
        "fast",
        "400 Gbit/s",
        replace(fast, service=roomy.service, redis=roomy.redis, cache_ratio=1.0, shard_sequences=8),
    )
    kept = replace(top_k, cache_ratio=1.0)
    yield Change("top_k", "top_k:64, all remembered, steps as at first", kept)
    yield Change("top_k patient", "cache_timeout_seconds 1", _patient(kept))
    yield Change("top_k teachers", "twice the teachers", _patient(replace(kept, teachers=16)))
    yield Change("hidden", "hidden:bf16, all remembered, 8 teachers", replace(hidden, cache_ratio=1.0))
    yield Change("hidden uncached", "no cache", replace(hidden, redis=None))


def _patient(one: Cluster) -> Cluster:
    assert one.redis is not None
    return replace(one, redis=replace(one.redis, timeout_seconds=1.0))
