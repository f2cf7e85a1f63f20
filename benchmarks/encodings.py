"""How many bytes does each encoding take, and how near is the gradient that is learnt from it to the full one?

The teacher is the real SmolLM2 in float32, over the text of Python's own help topics; the students are that model with
29 of its 30 layers, which is near to it, and with 20, as the demonstration cuts it, before any training. Bytes are
those of whole coded answers, headers and statistics included.
"""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks._result import Result, Value
from stillhouse.codec import decode_payload, encode_payload
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.kd import kd_loss_and_gradient
from stillhouse.kd.teacher import TopKTail
from stillhouse.models import load_causal_lm, load_tokenizer, resolve_model
from stillhouse.payloads import CandidateLogits, Payload, SampledCounts, TopKLogits
from stillhouse.request import All, Sequence
from student_worker.students.keep_layers import keep_layers
from teacher_service.backends.transformers import TransformersBackend

TEMPERATURES = (1.0, 1.5, 2.0, 4.0)
STUDENTS = {"29 of 30 layers": (*range(15), *range(16, 30)), "20 of 30 layers": (*range(10), *range(11, 30, 2))}
SEQUENCE_TOKENS = 256
STUDENTS_CHOICES = 64
"""Ids that the student names for each position, as on-policy and reverse-KL training does: its own first choices."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to be answered and to learn from it."""

    name: str
    encoding: Encoding
    tail: TopKTail = "bucket"


FORMS = (
    Form("dense f32", Dense("float32")),
    Form("dense f16", Dense("float16")),
    Form("dense bf16", Dense("bfloat16")),
    Form("hidden f32", Hidden("float32")),
    Form("hidden bf16", Hidden("bfloat16")),
    *(Form(f"top-{k}", TopK(k)) for k in (12, 64, 256)),
    *(Form(f"top-{k}, renormalised", TopK(k), "renormalise") for k in (12, 64, 256)),
    Form("sampled 50", Sampled(50)),
    Form("candidates, student's 64", Candidates()),
)


def measure(quick: bool) -> Result:
    """Measure every form at every temperature, of 2,048 positions (256 when quick) and two students.

    Figures, at T = 1: bytes per position of three forms, and the angle of the gradient from 50 draws for the near
    student. `angle_degrees` is of the batch's mean gradient, in which noise averages out and a bias does not;
    `position_angle_degrees` of all positions' gradients laid end to end.
    """
    texts = _Texts(1 if quick else 8)
    table: list[dict[str, Value]] = []
    for student, layers in STUDENTS.items():
        texts.cut_student(layers)
        for temperature in TEMPERATURES[:1] if quick else TEMPERATURES:
            table += [{"student": student, "temperature": temperature, **row} for row in _rows(texts, temperature)]
    at_one = {row["encoding"]: row for row in table[: len(FORMS)]}
    figures = {
        "dense_f32_bytes_per_position": at_one["dense f32"]["bytes_per_position"],
        "topk64_bytes_per_position": at_one["top-64"]["bytes_per_position"],
        "sampled50_bytes_per_position": at_one["sampled 50"]["bytes_per_position"],
        "sampled50_gradient_angle_degrees": at_one["sampled 50"]["angle_degrees"],
    }
    return Result("encodings", 1, table, {name: float(value or 0.0) for name, value in figures.items()})


def _rows(texts: _Texts, temperature: float) -> Iterator[dict[str, Value]]:
    exact, other = texts.gradient_buffer(), texts.gradient_buffer()
    for form in FORMS:
        gradient = exact if form is FORMS[0] else other
        learnt = texts.learn(form, temperature, gradient)
        yield {
            "encoding": form.name,
            "bytes_per_position": round(learnt.num_bytes / texts.num_positions, 1),
            "kept_mass": None if learnt.kept_mass is None else round(learnt.kept_mass, 4),
            "angle_degrees": round(angle(gradient.mean(0), exact.mean(0)), 3),
            "position_angle_degrees": round(angle(gradient, exact), 3),
            "kl": round(learnt.kl, 4),
        }


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one form comes to: bytes in all, the teacher's mass at the ids it names, and the KL in nats."""

    num_bytes: int
    kept_mass: float | None
    kl: float


class _Texts:
    """The same positions for every form: what the teacher and the student make of them."""

    def __init__(self, count: int) -> None:
        self._folder = resolve_model("smollm2")
        text = "\n".join(pydoc_data.topics.topics.values())[: 40 * SEQUENCE_TOKENS * count]
        ids = load_tokenizer(self._folder)(text)["input_ids"]
        self._sequences = [
            Sequence(tuple(ids[start : start + SEQUENCE_TOKENS]), positions=All())
            for start in range(0, SEQUENCE_TOKENS * count * 4, SEQUENCE_TOKENS * 4)
        ]
        teacher = TransformersBackend(load_causal_lm(self._folder, dtype="float32"), name="smollm2")
        self._hidden = [teacher.forward([sequence]).rows[0] for sequence in self._sequences]
        self._teacher = [teacher.head(rows) for rows in self._hidden]
        self._head = teacher.output_head()
        self.num_positions = sum(map(len, self._teacher))
        # Answers that are small and do not hang on the student; each is asked for by several forms and students.
        self._coded: dict[tuple[int, Encoding, float], bytes] = {}

    def cut_student(self, layers: tuple[int, ...]) -> None:
        """Let the teacher's model with these layers be the student."""
        model = load_causal_lm(self._folder, dtype="float32")
        keep_layers(model, layers)
        student = TransformersBackend(model, name="smollm2, cut")
        self._student = [student.head(student.forward([sequence]).rows[0]) for sequence in self._sequences]

    def gradient_buffer(self) -> Tensor:
        """Return `[R, V]` for all positions' gradients."""
        return self._teacher[0].new_empty(self.num_positions, self._teacher[0].shape[1])

    def learn(self, form: Form, temperature: float, gradient: Tensor) -> Learnt:
        """Encode, code to bytes, read again, and write the gradient of what was read."""
        num_bytes, kept, kl = 0, None, 0.0
        for index, rows in enumerate(torch.split(gradient, SEQUENCE_TOKENS)):
            data = self._code(index, form.encoding, temperature)
            num_bytes += len(data)
            payload = decode_payload(data)
            part = kd_loss_and_gradient(
                self._student[index],
                payload,
                temperature=temperature,
                alpha=0.0,
                num_valid=self.num_positions,
                output_head=self._head,
                top_k_tail=form.tail,
                out=rows,
            )
            kl += part.kl / temperature**2
            named = _named_ids(payload)
            if named:
                masses = zip(self._teacher[index], named, strict=True)
                kept = (kept or 0.0) + sum(float((row / temperature).softmax(-1)[ids].sum()) for row, ids in masses)
        return Learnt(num_bytes, None if kept is None else kept / self.num_positions, kl)

    def _code(self, index: int, encoding: Encoding, temperature: float) -> bytes:
        key = index, encoding, temperature
        data = self._coded.get(key)
        if data is None:
            data = encode_payload(self._answer(*key))
            if isinstance(encoding, TopK | Sampled):
                self._coded[key] = data
        return data

    def _answer(self, index: int, encoding: Encoding, temperature: float) -> Payload:
        sequence, logits = self._sequences[index], self._teacher[index]
        if isinstance(encoding, Hidden):
            return encode_hidden(self._hidden[index], encoding)
        if isinstance(encoding, Candidates):
            chosen = self._student[index].topk(STUDENTS_CHOICES, -1).indices.sort(-1).values
            sequence = replace(sequence, candidate_ids=tuple(map(tuple, chosen.tolist())))
        return encode_logits(
            [logits], encoding, sequence=sequence, temperature=temperature, vocabulary_size=logits.shape[1]
        )


def _named_ids(payload: Payload) -> tuple[Tensor, ...]:
    """Return the ids that a sparse answer names at each position; none for one that covers all of them."""
    match payload:
        case TopKLogits(token_ids=ids) | CandidateLogits(token_ids=ids):
            return ids.long().unbind()
        case SampledCounts():
            return torch.split(payload.token_ids.long(), payload.offsets.diff().tolist())
        case _:
            return ()


def angle(one: Tensor, other: Tensor) -> float:
    """Return the angle between two tensors as vectors, in degrees; right for small ones too, as acos is not."""
    # By parts that stay in a core's cache: a whole gradient has a hundred million entries.
    pairs = list(zip(torch.split(one.flatten(), 2**17), torch.split(other.flatten(), 2**17), strict=True))
    lengths = [math.sqrt(sum(_square(pair[side]) for pair in pairs)) for side in (0, 1)]
    apart = sum(_square(a / lengths[0] - b / lengths[1]) for a, b in pairs)
    together = sum(_square(a / lengths[0] + b / lengths[1]) for a, b in pairs)
    return math.degrees(2 * math.atan2(math.sqrt(apart), math.sqrt(together)))


def _square(vector: Tensor) -> float:
    return float(vector.square().sum(dtype=torch.float64))
