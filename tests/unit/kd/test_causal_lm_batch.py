"""A transformers batch as it is, against transformers' own loss on a model made on the spot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from stillhouse.encodings import TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import causal_lm_kd_loss, kd_loss_and_gradient
from stillhouse.payloads import DenseLogits, Payload
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest

V = 23
SEQUENCES = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13]]
PROMPTS = [2, 0, 1]
Batch = dict[str, Tensor]


def padded(side: str, *, prompts: bool = True) -> Batch:
    """What a collator makes: ids, labels that are -100 at padding and prompts, and the mask."""
    length = max(map(len, SEQUENCES))
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, prompt in zip(SEQUENCES, PROMPTS, strict=True):
        unlearnt = prompt if prompts else 0
        labels = [-100] * unlearnt + ids[unlearnt:]
        fill = [0] * (length - len(ids))
        for name, values, filler in (
            ("input_ids", ids, 0),
            ("labels", labels, -100),
            ("attention_mask", [1] * len(ids), 0),
        ):
            filled = [filler] * len(fill)
            columns[name].append(filled + values if side == "left" else values + filled)
    return {name: torch.tensor(rows) for name, rows in columns.items()}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def teacher_payloads() -> list[Payload]:
    generator = torch.Generator().manual_seed(3)
    return [DenseLogits(3 * torch.randn(len(ids), V, generator=generator)) for ids in SEQUENCES]


def kd(logits: Tensor, teacher: Any, batch: Batch, **options: Any) -> Tensor:
    defaults: dict[str, Any] = {"temperature": 2.0, "alpha": 0.5, "attention_mask": batch["attention_mask"]}
    return causal_lm_kd_loss(logits, teacher, batch["labels"], **(defaults | options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("items", [None, 37, torch.tensor(37)])
@pytest.mark.parametrize("prompts", [True, False])
def test_at_alpha_one_it_is_transformers_own_loss(
    model: LlamaForCausalLM, teacher_payloads: list[Payload], side: str, items: Tensor | int | None, prompts: bool
) -> None:
    batch = padded(side, prompts=prompts)
    output = model(**batch, **({} if items is None else {"num_items_in_batch": items}))
    loss = kd(output.logits, teacher_payloads, batch, alpha=1.0, num_items_in_batch=items)
    torch.testing.assert_close(loss, output.loss)
    embeddings = model.get_input_embeddings().get_parameter("weight")
    (ours,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
    (theirs,) = torch.autograd.grad(output.loss, embeddings)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_prediction_is_taught_by_the_teachers_row_for_the_same_token(
    teacher_payloads: list[Payload], side: str
) -> None:
    batch = padded(side)
    logits = torch.randn(3, 6, V, requires_grad=True)
    loss = kd(logits, teacher_payloads, batch, alpha=0.3)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    rows, taught, labels = [], [], []
    for index, (ids, prompt) in enumerate(zip(SEQUENCES, PROMPTS, strict=True)):
        start = 6 - len(ids) if side == "left" else 0
        for position in range(max(prompt - 1, 0), len(ids) - 1):
            rows.append((index, start + position))
            payload = teacher_payloads[index]
            assert isinstance(payload, DenseLogits)
            taught.append(payload.logits[position])
            labels.append(ids[position + 1])
    student = torch.stack([logits[row].detach() for row in rows])
    expected = kd_loss_and_gradient(student, torch.stack(taught), labels, temperature=2.0, alpha=0.3)
    # Under left padding a shorter sequence's first token is predicted, and counted, at the padding before it.
    extra = [(1, 2, 7)] if side == "left" else []
    extra_ce = [-torch.log_softmax(logits[i, j].detach(), -1)[label] for i, j, label in extra]
    cross_entropy = (expected.cross_entropy * len(rows) + sum(map(float, extra_ce))) / (len(rows) + len(extra))
    assert loss.item() == pytest.approx(0.3 * cross_entropy + 0.7 * expected.kl, rel=1e-5)
    assert logits.grad is not None
    touched = {tuple(index) for index in logits.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == set(rows) | {(i, j) for i, j, _ in extra}


@pytest.mark.parametrize("side", ["left", "right"])
def test_kl_over_attended_positions_counts_prompts_and_last_positions(
    teacher_payloads: list[Payload], side: str
) -> None:
    batch = padded(side)
    logits = torch.randn(3, 6, V)
    real = batch["attention_mask"].bool()
    teacher = torch.cat([payload.logits for payload in teacher_payloads if isinstance(payload, DenseLogits)])
    expected = kd_loss_and_gradient(logits[real], teacher, None, temperature=2.0, alpha=0.0)
    loss = kd(logits, teacher_payloads, batch, alpha=0.0, kl_positions="attended")
    assert loss.item() == pytest.approx(expected.loss, rel=1e-5)
    with pytest.raises(InvalidRequestError, match="num_valid_in_batch must be given with num_items_in_batch"):
        kd(logits, teacher_payloads, batch, kl_positions="attended", num_items_in_batch=9)
    halved = kd(
        logits, teacher_payloads, batch, alpha=0.0, kl_positions="attended", num_items_in_batch=9, num_valid_in_batch=26
    )
    assert halved.item() == pytest.approx(expected.loss / 2, rel=1e-5)


def test_accumulated_parts_with_one_number_of_items_are_the_whole_batch(teacher_payloads: list[Payload]) -> None:
    batch = padded("right")
    logits = torch.randn(3, 6, V)
    whole = kd(logits, teacher_payloads, batch)
    items = int((batch["labels"][:, 1:] != -100).sum())
    parts = [
        kd(
            logits[i : i + 1],
            teacher_payloads[i : i + 1],
            {name: rows[i : i + 1] for name, rows in batch.items()},
            num_items_in_batch=items,
        )
        for i in range(3)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


class RecordingTeacher(FixtureTeacher):
    requests: list[LogitsRequest]

    def __init__(self) -> None:
        super().__init__(V)
        self.requests = []

    def answer(self, request: LogitsRequest) -> Answer:
        self.requests.append(request)
        return super().answer(request)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kl_positions", ["labelled", "attended"])
@pytest.mark.parametrize("encoding", [None, TopK(4)])
def test_a_provider_is_asked_once_and_only_for_what_counts(side: str, kl_positions: str, encoding: Any) -> None:
    batch, teacher = padded(side), RecordingTeacher()
    logits = torch.randn(3, 6, V)
    options = {"kl_positions": kl_positions}
    asked = kd(logits, teacher, batch, input_ids=batch["input_ids"], encoding=encoding, **options)
    given = FixtureTeacher(V).logits(SEQUENCES, encoding=encoding, temperature=2.0)
    torch.testing.assert_close(asked, kd(logits, given, batch, **options))
    assert [[list(s.token_ids) for s in request.sequences] for request in teacher.requests] == [SEQUENCES]
    assert teacher.requests[0].num_positions == {"labelled": 4 + 2 + 3, "attended": 13}[kl_positions]


def test_a_batch_in_which_nothing_counts_has_no_loss_and_asks_nobody() -> None:
    batch, teacher = padded("right"), RecordingTeacher()
    batch["labels"][:] = -100
    logits = torch.randn(3, 6, V, requires_grad=True)
    loss = kd(logits, teacher, batch, input_ids=batch["input_ids"])
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
    assert teacher.requests == []


def test_without_a_mask_every_column_is_real() -> None:
    ids = torch.tensor([[1, 2, 3]])
    logits = torch.randn(1, 3, V)
    payloads = FixtureTeacher(V).logits([[1, 2, 3]])
    loss = causal_lm_kd_loss(logits, payloads, ids, attention_mask=None, temperature=1.0, alpha=1.0)
    torch.testing.assert_close(loss, ForCausalLMLoss(logits, ids, V))


def test_what_does_not_fit_is_refused(teacher_payloads: list[Payload]) -> None:
    batch, logits = padded("right"), torch.randn(3, 6, V)
    with pytest.raises(ValueError, match="one payload for each of the batch's 3 rows; got 2"):
        kd(logits, teacher_payloads[:2], batch)
    with pytest.raises(ValueError, match=r"teacher\[1\] must have one row for each of the 3 real tokens of row 1"):
        kd(logits, [teacher_payloads[0]] * 3, batch)
    with pytest.raises(ValueError, match="input_ids must have the labels' shape"):
        kd(logits, FixtureTeacher(V), batch)
    with pytest.raises(ValueError, match=r"labels must have the logits' shape \(3, 5\); got \(3, 6\)"):
        kd(logits[:, 1:], teacher_payloads, batch)
    with pytest.raises(ValueError, match="kl_positions must be labelled or attended"):
        kd(logits, teacher_payloads, batch, kl_positions="all")
    with pytest.raises(ValueError, match=r"labels\[0, 5\] must be -100"):
        kd(logits, teacher_payloads, {**batch, "labels": batch["labels"] + 17 * (batch["labels"] == 6)})
    with pytest.raises(InvalidRequestError, match="num_valid_in_batch is for"):
        kd(logits, teacher_payloads, batch, num_valid_in_batch=4)
