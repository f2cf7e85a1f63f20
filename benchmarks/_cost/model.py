"""What each part costs, in closed form: bytes, FLOPs, memory passes and waits, over a few constants of a machine.

No function here measures anything. Letters: V vocabulary, D hidden width, K kept ids, L tokens of a sequence, M
micro-shards, W workers, N clients. Seconds, bytes and FLOPs throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillhouse.encodings import Dense, Hidden, Sampled, TopK
from stillhouse.payload_header import HEADER_BYTES

FLOAT_BYTES = 4
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

TrainingEncoding = Dense | Hidden | TopK | Sampled
"""The forms that a student trains on; of candidates the bytes follow from what each caller names."""

KERNEL_PASS_FLOATS = 3
"""Of each entry of V the loss reads both sides' logits and writes a gradient."""

KERNEL_EXPONENTIALS = 2
"""Of each entry, at T = 2: the student's at 1 is the square of that at T."""

STATISTICS_BYTES = 16
"""Of a top-k answer, for each position: log-normaliser and tail, at 1 and at T."""

LAYER_FLOATS = 73
"""What a layer reads and writes beside its matmuls, in hidden widths for each token, counted in transformers' Llama
with as many heads for keys as for queries: two norms of five passes 20, the rotation of queries and keys 26, the gate,
three hidden widths wide, 6 and its product 9, two residual additions 6, attention's operands and result 4, a
transposition 2."""

SUM_PASS_FLOATS = 7
"""Of each entry the exact sum reads and writes one to cut, reads two and writes one to add, reads and writes one to
join."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a core gives, measured by work that is none of Stillhouse's."""

    pass_bytes_s: float
    """Of memory: two tensors read, one written."""
    exponentials_s: float
    """Exponentials of float32, each added to a sum, of what lies in the caches."""
    flop_s: float
    """Of a float32 matmul."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama without its head: `inner` is the width of its gated layers."""

    hidden: int
    layers: int
    inner: int

    @property
    def weights(self) -> int:
        """Entries of all matrices, each of which a token is multiplied with."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)


def kernel_seconds(machine: Machine, rows: int, vocabulary: int) -> float:
    """Return the seconds of loss and gradient, dense, at T = 2: one memory pass, and the exponentials beside it."""
    entries = rows * vocabulary
    memory = KERNEL_PASS_FLOATS * FLOAT_BYTES * entries / machine.pass_bytes_s
    return memory + KERNEL_EXPONENTIALS * entries / machine.exponentials_s


def payload_bytes(
    encoding: TrainingEncoding, rows: int, *, vocabulary: int, hidden: int = 0, distinct: float | None = None
) -> float:
    """Return the bytes of an answer to so many positions, header included.

    Args:
        encoding: the form.
        rows: positions.
        vocabulary: V.
        hidden: D, for HIDDEN.
        distinct: for SAMPLED, the mean number of distinct ids of a position; their bits are those of one choice among
            all sets of so many ids, which real draws undercut where frequent tokens have ids near each other.
    """
    match encoding:
        case Dense(value_type):
            row = float(_VALUE_BYTES[value_type] * vocabulary)
        case Hidden(value_type):
            row = float(_VALUE_BYTES[value_type] * hidden)
        case TopK(k, value_type):
            row = STATISTICS_BYTES + k * (FLOAT_BYTES + _VALUE_BYTES[value_type])
        case Sampled(draws):
            if distinct is None:
                raise ValueError("distinct must be given for SAMPLED: its bytes depend on how many ids are drawn")
            row = FLOAT_BYTES + (draws + log2_choices(vocabulary, distinct)) / 8
    return HEADER_BYTES + rows * row


def log2_choices(total: int, chosen: float) -> float:
    """Return log2 of the number of sets of `chosen` out of `total`; a mean need not be whole."""
    gammas = math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
    return gammas / math.log(2)


def forward_flops(shape: Shape, batch: int, tokens: int) -> float:
    """Return the FLOPs of a forward pass without the head: its matrices, and attention to what came before."""
    matrices = 2 * shape.weights * batch * tokens
    attention = shape.layers * batch * 2 * shape.hidden * tokens**2
    return float(matrices + attention)


def forward_seconds(machine: Machine, shape: Shape, batch: int, tokens: int) -> float:
    """Return the seconds of a forward pass without the head: its FLOPs, all weights once, and what else is moved."""
    moved = shape.weights + LAYER_FLOATS * shape.layers * shape.hidden * batch * tokens
    return forward_flops(shape, batch, tokens) / machine.flop_s + FLOAT_BYTES * moved / machine.pass_bytes_s


def head_seconds(machine: Machine, rows: int, hidden: int, vocabulary: int) -> float:
    """Return the seconds of an output head: its matmul, its weights once, and the logits that it writes."""
    moved = FLOAT_BYTES * vocabulary * (hidden + rows)
    return 2 * rows * hidden * vocabulary / machine.flop_s + moved / machine.pass_bytes_s


def requests_s(
    clients: int,
    *,
    alone_seconds: float,
    request_seconds: float,
    batch: int,
    full_batch_seconds: float,
) -> float:
    """Return the requests a second of callers who each ask again once answered.

    Callers that fit into one batch go through the model together, where it waits for them, and through all else one
    after the other; more of them wait for the model, or for the busiest core.

    Args:
        clients: N.
        alone_seconds: what a request takes while nobody else asks, the model included.
        request_seconds: what a request takes of the busiest core.
        batch: how many requests fit into one.
        full_batch_seconds: what the model's thread takes for as many.
    """
    together = clients / (alone_seconds + (clients - 1) * request_seconds)
    return min(together, batch / full_batch_seconds, 1 / request_seconds)


def answer_seconds(num_bytes: float, *, request_seconds: float, bytes_s: float) -> float:
    """Return the seconds from question to answer where nothing has to be computed."""
    return request_seconds + num_bytes / bytes_s


def sum_seconds(
    machine: Machine, elements: int, traffic_bytes: float, workers: int, *, cores: int, bytes_s: float
) -> float:
    """Return the seconds of the exact sum among workers on one host, each with a thread.

    `bytes_s` is what a worker with a core of its own sends in a plain all-reduce, which is all that two workers do;
    more of them also cut their gradients, add what they get, and join what is finished.
    """
    passes = SUM_PASS_FLOATS if workers > 2 else 0
    moved = passes * FLOAT_BYTES * elements / machine.pass_bytes_s
    return (traffic_bytes / bytes_s + moved) * _crowding(workers, cores)


def step_seconds(
    workers: int, *, shards: int, cores: int, shard_seconds: float, update_seconds: float, sum_seconds: float
) -> float:
    """Return the seconds of a student's step, each worker with its share of M micro-shards and a thread.

    The busiest of W workers has M / W of them, rounded up; each updates all weights; W workers on fewer cores take
    turns.
    """
    compute = -(-shards // workers) * shard_seconds + update_seconds
    return compute * _crowding(workers, cores) + sum_seconds


def _crowding(workers: int, cores: int) -> float:
    return max(1.0, workers / cores)
