"""Curves of what one core computes: the loss, answers and their bytes over V, a forward pass over tokens and batch.

The work that gives the machine's constants is a contestant like the others, in the same rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks._cost.model import (
    FLOAT_BYTES,
    KERNEL_PASS_FLOATS,
    Machine,
    Shape,
    TrainingEncoding,
    forward_seconds,
    head_seconds,
    kernel_seconds,
    payload_bytes,
)
from benchmarks._cost.point import Point
from benchmarks._measure import interleave, one_thread
from benchmarks._training.loop import small_llama
from stillhouse.codec import decode_payload, encode_payload
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Dense, Hidden, Sampled, TopK
from stillhouse.kd import kd_loss_and_gradient
from stillhouse.payloads import DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import All, Sequence

Contestants = Mapping[str, Callable[[], object]]

VOCABULARIES = (32_768, 49_152, 65_536, 98_304, 131_072, 196_608, 262_144)
WIDTHS = (1024, 2048, 4096, 8192)
"""Of hidden states, which know nothing of V."""
FITTED_VOCABULARY, FITTED_WIDTH = 65_536, 4096
LENGTHS = (64, 128, 256, 512, 1024)
BATCHES = (1, 2, 4, 8, 16)
BATCH_TOKENS = 64
HIDDEN = 512
ENCODINGS: dict[str, TrainingEncoding] = {
    "dense:f32": Dense("float32"),
    "dense:bf16": Dense("bfloat16"),
    "hidden:bf16": Hidden("bfloat16"),
    "top_k:64": TopK(64),
    "sampled:50": Sampled(50),
}
HEAD_ROWS = 256
"""As many as the service lets through its head at once (`head_chunk_rows`)."""
DENSE_ROWS, HIDDEN_ROWS, OTHER_ROWS = 16, 256, 64
"""Positions of an answer, whatever V: enough to hide what each answer takes, and of dense ones so few that none asks
the system for fresh pages, which cost more than what is written there."""
TEMPERATURE, ALPHA = 2.0, 0.5
# In a core's caches, and far outside of them.
_CACHED_FLOATS, _PASS_FLOATS = 2**14, 2**24
_EXPONENTIAL_TURNS = 64


def compute_points(quick: bool) -> tuple[list[Point], Machine]:
    """Return the curves of one core, and its constants."""
    rounds, floats = (1, 2**18) if quick else (2, 2**22)
    vocabularies = VOCABULARIES[:3] if quick else VOCABULARIES
    with one_thread(), torch.inference_mode():
        constants = _constants(2**18 if quick else _PASS_FLOATS)
        kernels = {f"kernel {v}": _Kernel(floats // v, v) for v in vocabularies}
        forwards = _Forward(quick)
        for kernel in kernels.values():
            kernel.check()
        contestants: dict[str, Callable[[], object]] = {**constants, **kernels, **forwards.contestants()}
        least = {name: timing.minimum for name, timing in interleave(contestants, rounds).items()}
        machine = Machine(
            pass_bytes_s=KERNEL_PASS_FLOATS * FLOAT_BYTES * (2**18 if quick else _PASS_FLOATS) / least["memory pass"],
            exponentials_s=_EXPONENTIAL_TURNS * _CACHED_FLOATS / least["exponentials"],
            flop_s=2 * 512 * HIDDEN * 3 * HIDDEN / least["matmul"],
        )
        points = [kernel.point(least[name], machine) for name, kernel in kernels.items()]
        points += forwards.points(least, machine)
        points += _encoding_points(vocabularies, rounds)
    return points, machine


def _constants(pass_floats: int) -> Contestants:
    one, other, out = (torch.randn(pass_floats) for _ in range(3))
    cached, cached_out = torch.randn(_CACHED_FLOATS), torch.empty(_CACHED_FLOATS)
    rows, matrix = torch.randn(512, HIDDEN), torch.randn(HIDDEN, 3 * HIDDEN)
    return {
        "memory pass": lambda: torch.add(one, other, out=out),
        "exponentials": lambda: [torch.exp(cached, out=cached_out).sum() for _ in range(_EXPONENTIAL_TURNS)],
        "matmul": lambda: rows @ matrix,
    }


class _Kernel:
    """Loss and gradient of a block of so many entries in all, whatever V."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._student, self._teacher = (3 * torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
        self._labels = torch.randint(vocabulary, (rows,), generator=generator)
        self._out = torch.empty_like(self._student)

    def __call__(self) -> None:
        self._run(len(self._student))

    def _run(self, rows: int) -> tuple[float, Tensor]:
        parts = (tensor[:rows] for tensor in (self._student, self._teacher, self._labels))
        result = kd_loss_and_gradient(*parts, temperature=TEMPERATURE, alpha=ALPHA, out=self._out[:rows])
        return result.loss, result.gradient

    def check(self) -> None:
        """Compare two rows with autograd in float64."""
        loss, gradient = self._run(2)
        with torch.inference_mode(False), torch.enable_grad():
            # Clones: what was made in inference mode cannot be differentiated.
            student = self._student[:2].double().clone().requires_grad_()
            teacher, labels = self._teacher[:2].double().clone(), self._labels[:2].clone()
            log_q, log_p = ((x / TEMPERATURE).log_softmax(-1) for x in (student, teacher))
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            exact = ALPHA * torch.nn.functional.cross_entropy(student, labels)
            exact = exact + (1 - ALPHA) * TEMPERATURE**2 * divergence
            (exact_gradient,) = torch.autograd.grad(exact, student)
        assert abs(loss - exact.item()) < 1e-5 * abs(exact.item()), (loss, exact.item())
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-9)

    def point(self, seconds: float, machine: Machine) -> Point:
        rows, vocabulary = self._student.shape
        predicted = kernel_seconds(machine, rows, vocabulary)
        return Point(
            "loss and gradient", "V", vocabulary, 1e6 * seconds / rows, 1e6 * predicted / rows, "us/position", "apart"
        )


class _Forward:
    """A random Llama's forward pass over lengths and batches, and its head over V."""

    def __init__(self, quick: bool) -> None:
        self._vocabularies = VOCABULARIES[:2] if quick else VOCABULARIES[:5]
        self._lengths = LENGTHS[:2] if quick else LENGTHS
        self._batches = BATCHES[:2] if quick else BATCHES
        layers = 2 if quick else 4
        student = small_llama(4096, hidden=HIDDEN, layers=layers)
        self._model: Any = cast("Any", student.module).model.eval()
        self.shape = Shape(HIDDEN, layers, 3 * HIDDEN)
        # One head, of which narrower ones are the first rows.
        self._head = torch.randn(self._vocabularies[-1], HIDDEN)
        self._rows = torch.randn(HEAD_ROWS, HIDDEN)
        self._check()

    def _states(self, batch: int, tokens: int) -> Tensor:
        ids = (31 * torch.arange(batch)[:, None] + torch.arange(tokens)) % 4096
        states: Tensor = self._model(ids, use_cache=False).last_hidden_state
        return states

    def _check(self) -> None:
        """Compare a batch's second sequence with the same one alone, and one with float64."""
        torch.testing.assert_close(self._states(2, 32)[:1], self._states(1, 32), rtol=1e-3, atol=1e-3)
        states = self._states(1, 32)
        exact = copy.deepcopy(self._model).double()(torch.arange(32)[None], use_cache=False).last_hidden_state
        torch.testing.assert_close(states.double(), exact, rtol=1e-3, atol=1e-3)

    def contestants(self) -> Contestants:
        return {
            **{f"length {n}": partial(self._states, 1, n) for n in self._lengths},
            **{f"batch {n}": partial(self._states, n, BATCH_TOKENS) for n in self._batches},
            **{f"head {v}": partial(torch.matmul, self._rows, self._head[:v].T) for v in self._vocabularies},
        }

    def points(self, least: Mapping[str, float], machine: Machine) -> Iterator[Point]:
        curves = [("forward, one sequence", "L", n, f"length {n}", (1, n)) for n in self._lengths]
        curves += [(f"forward, L = {BATCH_TOKENS}", "B", n, f"batch {n}", (n, BATCH_TOKENS)) for n in self._batches]
        for curve, x_name, x, name, size in curves:
            predicted = forward_seconds(machine, self.shape, *size)
            yield Point(curve, x_name, x, 1e3 * least[name], 1e3 * predicted, "ms", "apart")
        for v in self._vocabularies:
            rows = len(self._rows)
            predicted, measured = head_seconds(machine, rows, HIDDEN, v), least[f"head {v}"]
            yield Point("output head", "V", v, 1e6 * measured / rows, 1e6 * predicted / rows, "us/position", "apart")


@dataclass(frozen=True, slots=True)
class _Coded:
    payload: Payload
    data: bytes
    encode: Callable[[], Payload]


def _encoding_points(vocabularies: tuple[int, ...], rounds: int) -> Iterator[Point]:
    coded = {
        (name, size): _code(encoding, size)
        for name, encoding in ENCODINGS.items()
        for size in (WIDTHS if isinstance(encoding, Hidden) else vocabularies)
    }
    contestants: dict[str, Callable[[], object]] = {}
    for (name, size), one in coded.items():
        _check_same(one)
        contestants |= {
            f"encode {name} {size}": one.encode,
            f"code {name} {size}": partial(encode_payload, one.payload),
            f"decode {name} {size}": partial(decode_payload, one.data),
        }
    least = {name: timing.minimum for name, timing in interleave(contestants, rounds).items()}
    for (name, size), one in coded.items():
        rows, encoding = one.payload.num_positions, ENCODINGS[name]
        is_hidden, is_dense = isinstance(encoding, Hidden), isinstance(encoding, Dense)
        x_name, fitted_at = ("D", FITTED_WIDTH) if is_hidden else ("V", FITTED_VOCABULARY)
        distinct = len(one.payload.token_ids) / rows if isinstance(one.payload, SampledCounts) else None
        foretold = payload_bytes(encoding, rows, vocabulary=size, hidden=size, distinct=distinct)
        yield Point(f"bytes, {name}", x_name, size, len(one.data) / rows, foretold / rows, "bytes/position", "formula")
        for what in ("encode", "code", "decode"):
            # To encode logits is to look at all of them; to code an answer only where all of them travel.
            grows = is_hidden or is_dense or what == "encode"
            fitted = 1e6 * least[f"{what} {name} {fitted_at}"] / rows
            predicted = fitted * size / fitted_at if grows else fitted
            known = "fitted" if size == fitted_at else "point"
            measured = 1e6 * least[f"{what} {name} {size}"] / rows
            yield Point(f"{what}, {name}", x_name, size, measured, predicted, "us/position", known)


def _code(encoding: TrainingEncoding, size: int) -> _Coded:
    """Return an answer of hidden states of this width, or of logits of this vocabulary.

    They are as steep as a real teacher's: p falls with the rank, and frequent ids lie anywhere.
    """
    rows = {Dense: DENSE_ROWS, Hidden: HIDDEN_ROWS}.get(type(encoding), OTHER_ROWS)
    generator = torch.Generator().manual_seed(size)
    asked = Sequence(tuple(range(rows)), positions=All())
    if isinstance(encoding, Hidden):
        states = torch.randn(rows, size, generator=generator)

        def make() -> Payload:
            return encode_hidden(states, encoding)
    else:
        ranked = -1.4 * torch.arange(1.0, size + 1).log()
        logits = torch.stack([ranked[torch.randperm(size, generator=generator)] for _ in range(rows)])

        def make() -> Payload:
            return encode_logits([logits], encoding, sequence=asked, temperature=1.0, vocabulary_size=size)

    payload = make()
    return _Coded(payload, encode_payload(payload), make)


def _check_same(coded: _Coded) -> None:
    """See that the bytes are the same again, and hold what was encoded."""
    assert encode_payload(coded.encode()) == coded.data
    for one, other in zip(_tensors(coded.payload), _tensors(decode_payload(coded.data)), strict=True):
        assert torch.equal(one, other)


def _tensors(payload: Payload) -> tuple[Tensor, ...]:
    match payload:
        case DenseLogits(tensor) | HiddenStates(tensor):
            return (tensor,)
        case TopKLogits():
            return payload.token_ids, payload.logits, payload.log_normalizer, payload.log_tail_mass
        case SampledCounts():
            return payload.offsets, payload.token_ids, payload.counts, payload.entropy
        case _:
            raise TypeError(f"no benchmark asks for {type(payload).__name__}")
