"""Cross-entropy with no teacher: what alpha = 1 comes to, by the same arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from stillhouse.errors import VocabularyMismatchError
from stillhouse.kd import cross_entropy_and_gradient, kd_loss_and_gradient

R, V, N = 7, 13, 11


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, N, (R,), generator=generator)
    labels[2] = -100
    return torch.randn(R, V, generator=generator) * 3, torch.randn(R, N, generator=generator), labels


def test_it_is_the_loss_and_gradient_of_alpha_one_to_the_bit() -> None:
    student, teacher, labels = rows()
    alone = cross_entropy_and_gradient(student, labels, num_labelled=20, vocabulary_size=N)
    beside = kd_loss_and_gradient(
        student, teacher, labels, temperature=1.0, alpha=1.0, num_labelled=20, vocabulary_size=N
    )
    assert alone.loss == alone.cross_entropy == beside.loss
    assert torch.equal(alone.gradient, beside.gradient)
    assert (alone.num_labelled, math.isnan(alone.kl)) == (20, True)


def test_it_equals_autograd() -> None:
    student, _, labels = rows(1)
    leaf = student.double().requires_grad_()
    torch.autograd.backward(torch.nn.functional.cross_entropy(leaf[:, :N], labels))
    found = cross_entropy_and_gradient(student, labels, vocabulary_size=N)
    assert leaf.grad is not None
    torch.testing.assert_close(found.gradient.double(), leaf.grad, atol=1e-6, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    student, _, labels = rows()
    with pytest.raises(VocabularyMismatchError, match="vocabulary_size 14 is more than the student's 13"):
        cross_entropy_and_gradient(student, labels, vocabulary_size=14)
    with pytest.raises(ValueError, match="label"):
        cross_entropy_and_gradient(student, labels.clamp_min(0) + N, vocabulary_size=N)
    with pytest.raises(ValueError, match="NaN"):
        cross_entropy_and_gradient(student * math.nan, labels)
