"""What the page on training shows can be run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.fixtures import FixtureTeacher

PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def test_the_loop_over_the_students_own_text_runs_and_learns_the_reverse_divergence() -> None:
    (block,) = [part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]]
    size = 9
    row = torch.linspace(-1, 1, size).requires_grad_()
    names: dict[str, object] = {
        "teacher": FixtureTeacher(size),
        "student": lambda ids: row.expand(*ids.shape, size),
    }
    exec(block, names)  # noqa: S102 - the page's own lines
    loss, own = names["loss"], torch.log_softmax(row.detach(), -1)
    assert isinstance(loss, torch.Tensor)
    written = torch.tensor([[5, 2, 7, 3], [4, 6, 1, 2]])
    # The fixture prefers each token that comes next: 10.0 beside zeros.
    taught = 10 - torch.tensor([10.0] + [0.0] * (size - 1)).logsumexp(0)
    assert float(loss.detach()) == pytest.approx(float(((own[written] - taught) * own[written]).mean()), rel=1e-5)
    assert row.grad is not None
    assert bool(row.grad.any())
