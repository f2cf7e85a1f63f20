"""The loss on a real GPU: Triton's programs against float64 autograd, at real widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Encoding, Sampled, TopK
from stillhouse.kd import head_kd_loss, kd_loss, kd_loss_and_gradient, kernels
from stillhouse.payloads import CandidateLogits, HiddenStates, OutputHead, SampledCounts, TopKLogits
from stillhouse.request import All, Sequence

ROWS, WIDTH = 96, 49_152
ALPHA = 0.3


def made(seed: int, *shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def labels_for(rows: int, width: int, device: torch.device) -> Tensor:
    labels = torch.randint(0, width, (rows,), generator=torch.Generator(device).manual_seed(2), device=device)
    labels[::5] = -100
    return labels


def by_autograd(
    student: Tensor, labels: Tensor, temperature: float, divergence: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return loss and gradient in float64; `divergence` is the KL of each row, from log-probabilities at T."""
    leaf = student.double().requires_grad_()
    cross_entropy = torch.nn.functional.cross_entropy(leaf, labels, ignore_index=-100)
    kl = divergence(torch.log_softmax(leaf / temperature, -1)).mean()
    loss = ALPHA * cross_entropy + (1 - ALPHA) * temperature**2 * kl
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def assert_equal(ours: Any, loss: Tensor, gradient: Tensor, *, tolerance: float) -> None:
    assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
    difference = (ours.gradient.double() - gradient).abs().max() / gradient.abs().max()
    assert float(difference) <= tolerance


def dense_divergence(teacher: Tensor, temperature: float) -> Callable[[Tensor], Tensor]:
    log_p = torch.log_softmax(teacher.double() / temperature, -1)
    return lambda log_q: (log_p.exp() * (log_p - log_q)).sum(-1)


def test_triton_computes_on_this_gpu(cuda: torch.device) -> None:
    assert kernels.chosen(cuda) == "triton"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 8.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_dense(cuda: torch.device, temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    student, teacher = (3 * made(seed, ROWS, WIDTH, device=cuda).to(dtype) for seed in range(2))
    labels = labels_for(ROWS, WIDTH, cuda)
    ours = kd_loss_and_gradient(student, teacher, labels, temperature=temperature, alpha=ALPHA)
    assert ours.gradient.dtype == dtype
    assert_equal(
        ours,
        *by_autograd(student, labels, temperature, dense_divergence(teacher, temperature)),
        tolerance=tolerance,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("encoding", [TopK(64, "float32"), Sampled(50), Candidates((1, 5, 40_000), "float32")])
def test_sparse_answers_that_the_gpu_itself_has_encoded(
    cuda: torch.device, temperature: float, encoding: Encoding
) -> None:
    student, teacher = (3 * made(seed, ROWS, WIDTH, device=cuda) for seed in range(2))
    labels = labels_for(ROWS, WIDTH, cuda)
    asked = Sequence((0,) * ROWS, positions=All())
    answer = encode_logits([teacher], encoding, sequence=asked, temperature=temperature, vocabulary_size=WIDTH)
    ours = kd_loss_and_gradient(student, answer, labels, temperature=temperature, alpha=ALPHA)
    log_p = torch.log_softmax(teacher.double() / temperature, -1)
    if isinstance(answer, SampledCounts):
        rows = torch.repeat_interleave(torch.arange(ROWS), answer.offsets.diff()).to(cuda)
        ids, share = answer.token_ids.long().to(cuda), answer.counts.double().to(cuda) / answer.draws

        def divergence(log_q: Tensor) -> Tensor:
            taken = torch.zeros(ROWS, dtype=torch.float64, device=cuda).index_add(0, rows, share * log_q[rows, ids])
            return -taken - answer.entropy.double().to(cuda)

    else:
        assert isinstance(answer, TopKLogits | CandidateLogits)
        kept = answer.token_ids.long().to(cuda)
        kept = kept.expand(ROWS, -1) if kept.dim() == 1 else kept

        def bucketed(log_probs: Tensor) -> Tensor:
            tail = log_probs.scatter(1, kept, -torch.inf).logsumexp(1, keepdim=True)
            return torch.cat([log_probs.gather(1, kept), tail], 1)

        def divergence(log_q: Tensor) -> Tensor:
            ours, theirs = bucketed(log_p), bucketed(log_q)
            return (ours.exp() * (ours - theirs)).sum(-1)

        if isinstance(answer, TopKLogits):
            assert torch.equal(kept.sort(1).values, teacher.topk(encoding.k).indices.sort(1).values)  # type: ignore[union-attr]  # it is one of TopK
    assert_equal(ours, *by_autograd(student, labels, temperature, divergence), tolerance=2e-5)


def test_hidden_states_with_the_head_on_the_gpu(cuda: torch.device) -> None:
    student, weight, taught = (
        made(seed, *shape, device=cuda) for seed, shape in enumerate([(ROWS, WIDTH), (WIDTH, 256), (ROWS, 256)])
    )
    labels = labels_for(ROWS, WIDTH, cuda)
    weight /= 16
    head = OutputHead(weight)
    ours = kd_loss_and_gradient(student, HiddenStates(taught), labels, temperature=2.0, alpha=ALPHA, output_head=head)
    teacher = taught.double() @ weight.double().T
    assert_equal(ours, *by_autograd(student, labels, 2.0, dense_divergence(teacher, 2.0)), tolerance=5e-3)


def test_head_and_loss_in_one_agree_with_the_plain_way(cuda: torch.device) -> None:
    hidden, weight, taught, head = (
        made(seed, *shape, device=cuda)
        for seed, shape in enumerate([(300, 128), (WIDTH, 128), (300, 192), (WIDTH, 192)])
    )
    labels = labels_for(300, WIDTH, cuda)
    hidden.requires_grad_()
    (weight := weight / 11).requires_grad_()
    teacher_head = OutputHead(head / 14)
    in_one = head_kd_loss(
        hidden, weight, HiddenStates(taught), labels, temperature=2.0, alpha=ALPHA, output_head=teacher_head
    )
    ours = torch.autograd.grad(in_one, (hidden, weight))
    plain = kd_loss(hidden @ weight.T, teacher_head.logits(taught, WIDTH), labels, temperature=2.0, alpha=ALPHA)
    theirs = torch.autograd.grad(plain, (hidden, weight))
    assert in_one.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm() / other.norm()) <= 1e-4


def test_a_row_has_the_same_bits_whatever_stands_beside_it(cuda: torch.device) -> None:
    student, teacher = (3 * made(seed, ROWS, WIDTH, device=cuda) for seed in range(2))
    labels = labels_for(ROWS, WIDTH, cuda)
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.0}
    whole = kd_loss_and_gradient(student, teacher, labels, **options)
    again = kd_loss_and_gradient(student, teacher, labels, **options)
    assert whole.loss == again.loss
    assert torch.equal(whole.gradient, again.gradient)
    part = kd_loss_and_gradient(student[7:9], teacher[7:9], labels[7:9], **options, num_valid=ROWS)
    assert torch.equal(part.gradient, whole.gradient[7:9])


def test_more_elements_than_32_bits_can_count(cuda: torch.device) -> None:
    # It needs Triton, which is where there is a GPU.
    from stillhouse.kd.device.kernel import CHUNK_ELEMENTS

    width = 151_936
    rows = 2**31 // width + 8
    if torch.cuda.mem_get_info(cuda)[0] < 5 * rows * width * 2:
        pytest.skip("NOT TESTED: logits of more than 2**31 elements; too little of the GPU's memory is free")
    student = made(0, rows, width, device=cuda).to(torch.bfloat16)
    teacher = student.roll(1, 0)
    labels = labels_for(rows, width, cuda)
    whole = kd_loss_and_gradient(student, teacher, labels, temperature=2.0, alpha=0.5)
    last = slice(rows - 5, rows)
    part = kd_loss_and_gradient(student[last], teacher[last], labels[last], temperature=2.0, alpha=0.0)
    alone = kd_loss_and_gradient(student, teacher, labels, temperature=2.0, alpha=0.0)
    assert whole.gradient.isfinite().all()
    ours, theirs = alone.gradient[last].float() * rows, part.gradient.float() * 5
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-2
    assert rows * width > CHUNK_ELEMENTS


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_is_not_finite_is_refused_before_any_gradient_is_handed_out(
    cuda: torch.device, side: str, value: float
) -> None:
    sides = {"student": made(0, 5, WIDTH, device=cuda), "teacher": made(1, 5, WIDTH, device=cuda)}
    sides[side][3, 17] = value
    with pytest.raises(ValueError, match="3"):
        kd_loss_and_gradient(sides["student"], sides["teacher"], labels_for(5, WIDTH, cuda), temperature=1.0, alpha=0.5)


def test_a_step_in_autograd_trains(cuda: torch.device) -> None:
    weight = made(0, WIDTH, 64, device=cuda).requires_grad_()
    hidden, teacher = made(1, 32, 64, device=cuda), 3 * made(2, 32, WIDTH, device=cuda)
    labels = labels_for(32, WIDTH, cuda)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    losses = []
    for _ in range(5):
        loss = kd_loss(hidden @ weight.T, teacher, labels, temperature=4.0, alpha=0.0)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
