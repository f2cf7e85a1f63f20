"""The held-out loss is what the run minimises, at T = 1; `kl` stays what it is whatever that may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.asking import Asking
from stillhouse.encode import encode_logits
from stillhouse.encodings import Dense
from stillhouse.kd.divergences import Divergence, DivergenceName
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from student_worker.batches import Batch, make_batch
from student_worker.evaluation.evaluate import Evaluator
from student_worker.students.base import Student

V = 20


class Unigram(Student):
    """One row of logits for each token."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Embedding(V, V), 0.1)

    @property
    def vocabulary_size(self) -> int:
        return V

    def row_states(self, batch: Batch) -> Tensor:
        states: Tensor = self.module(batch.input_ids)
        return states.flatten(0, 1)[batch.rows]

    def head(self, states: Tensor) -> Tensor:
        return states

    def export(self, folder: Any, card: Any) -> None:
        raise AssertionError(f"not exported here: {folder}, {card}")


TEACHER = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(1))


def answer(request: LogitsRequest) -> Answer:
    payloads = []
    for sequence in request.sequences:
        rows = TEACHER[list(sequence.token_ids)][list(sequence.position_indices())]
        payloads.append(encode_logits([rows], request.encoding, sequence=sequence, temperature=1.0, vocabulary_size=V))
    return Answer(tuple(payloads), "f")


def formula(name: DivergenceName, beta: float, p: Tensor, q: Tensor) -> Tensor:
    if name == "forward_kl":
        return (p * (p / q).log()).sum(-1).mean()
    if name == "reverse_kl":
        return (q * (q / p).log()).sum(-1).mean()
    m = beta * p + (1 - beta) * q
    return (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(-1).mean()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_the_held_out_loss_is_the_objective_and_its_kl_the_forward_one(dataset: Any, name: DivergenceName) -> None:
    student, alpha, beta = Unigram(), 0.3, 0.2
    asking = Asking(Dense(), 1.0, V, "f", "bypass")
    evaluation = Evaluator(dataset, answer, asking, 0, None, alpha, Divergence(name, beta)).evaluate(student)
    assert evaluation is not None
    batch = make_batch(dataset.samples)
    with torch.no_grad():
        s = student.row_states(batch).double()
    t = TEACHER[batch.input_ids.flatten()[batch.rows]].double()
    p, q = t.softmax(-1), s.softmax(-1)
    cross_entropy = functional.cross_entropy(s, batch.labels)
    expected = alpha * cross_entropy + (1 - alpha) * formula(name, beta, p, q)
    assert evaluation.loss == pytest.approx(float(expected), rel=1e-5)
    assert evaluation.kl == pytest.approx(float(formula("forward_kl", beta, p, q)), rel=1e-5)
