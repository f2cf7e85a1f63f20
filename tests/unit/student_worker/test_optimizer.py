"""The optimizer moves every parameter by the flat gradient, and its state is whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from student_worker.optimizer import StudentOptimizer


def make_module() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5))
    module[2].weight = module[0].weight  # tied, as language models are
    return module


def flat_gradient(n: int, step: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(step))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def test_a_step_equals_torchs_clipped_adamw() -> None:
    ours, theirs = make_module(), make_module()
    optimizer = StudentOptimizer(ours, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-6, max_grad_norm=0.5)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    for step in range(3):
        flat, offset = flat_gradient(optimizer.num_parameters, step), 0
        for parameter in theirs.parameters():
            parameter.grad = flat[offset : offset + parameter.numel()].clone().view_as(parameter)
            offset += parameter.numel()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        plain.step()
        assert optimizer.apply(flat, 0.01) == pytest.approx(float(norm))
    torch.testing.assert_close(weights(ours), weights(theirs))


def test_a_tied_parameter_has_one_place_in_the_gradient() -> None:
    module = make_module()
    optimizer = StudentOptimizer(module)
    assert optimizer.num_parameters == 15 + 3 + 3 + 5
    flat = torch.zeros(optimizer.num_parameters)
    optimizer.attach(flat)
    torch.autograd.backward(module(torch.tensor([0, 1])).sum())
    assert bool((flat[:15].view(5, 3).abs().sum(1) > 0).all()), "embedding and head both add to the tied weight"


def test_no_clipping_where_none_is_asked_for_or_needed() -> None:
    for bound in (0.0, 1e9):
        module = make_module()
        optimizer = StudentOptimizer(module, max_grad_norm=bound)
        flat = flat_gradient(optimizer.num_parameters, 0)
        before = flat.clone()
        optimizer.apply(flat, 0.1)
        assert torch.equal(flat, before)


def test_weight_decay_moves_matrices_and_leaves_norms_and_biases() -> None:
    module = make_module()
    optimizer = StudentOptimizer(module, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer.apply(torch.zeros(optimizer.num_parameters), 0.1)
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"0.weight"}


def test_a_step_after_a_restored_state_has_the_same_bits() -> None:
    one, other = make_module(), make_module()
    first, second = StudentOptimizer(one), StudentOptimizer(other)
    for step in range(2):
        first.apply(flat_gradient(first.num_parameters, step), 0.01)
    with torch.no_grad():
        for ours, theirs in zip(other.parameters(), one.parameters(), strict=True):
            ours.copy_(theirs)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for optimizer in (first, second):
        optimizer.apply(flat_gradient(first.num_parameters, 9), 0.01)
    assert torch.equal(weights(one), weights(other))


def test_the_state_before_the_first_step_is_a_fresh_ones() -> None:
    one, other = make_module(), make_module()
    first, second = StudentOptimizer(one), StudentOptimizer(other)
    second.load(first.state())
    for optimizer in (first, second):
        optimizer.apply(flat_gradient(first.num_parameters, 1), 0.01)
    assert torch.equal(weights(one), weights(other))


def test_an_incomplete_state_is_refused() -> None:
    optimizer = StudentOptimizer(make_module())
    state = optimizer.state()
    del state["exp_avg_sq.0.weight"]
    with pytest.raises(KeyError, match=r"exp_avg_sq\.0\.weight"):
        optimizer.load(state)
