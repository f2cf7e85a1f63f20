"""A compiled student learns as an eager one, is compiled once and before the first step, and keeps its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import ConfigurationError
from student_worker.batches import NO_LABEL, Batch
from student_worker.recipe.schema import CausalLMSpec
from student_worker.students.base import ModelCard, Student
from student_worker.students.causal_lm import CausalLMStudent, checkpoint_activations
from student_worker.students.lora import LoraStudent, add_adapters
from tests.tiny_models import VOCABULARY_SIZE, tiny_model

# torch's compiler uses what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

SIZE, LENGTH = 3, 12


def batch(size: int, lengths: tuple[int, ...], seed: int) -> Batch:
    """Return `size` samples of documents of these lengths; every position but the last is a row."""
    length = sum(lengths)
    ids = torch.randint(VOCABULARY_SIZE, (size, length), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(part) for part in lengths]).repeat(size, 1)
    rows = torch.cat([torch.arange(length - 1) + index * length for index in range(size)])
    return Batch(ids, positions, rows, torch.full_like(rows, NO_LABEL))


BATCHES = [batch(3, (12,), 0), batch(2, (12,), 1), batch(1, (5, 7), 2), batch(3, (4, 3), 3)]


def gradients(student: Student, given: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the rows' logits in training, and the gradient of a fixed function of them by parameter."""
    student.module.train()
    torch.manual_seed(9)
    logits = student.head(student.row_states(given))
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    student.module.zero_grad()
    (logits * weights).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return logits.detach(), {
        name: p.grad.clone() for name, p in student.module.named_parameters() if p.grad is not None
    }


def adapted_with_checkpointing(*, compile_body: bool) -> Student:
    spec = CausalLMSpec.model_validate({"kind": "causal_lm", "model": "base", "lora_r": 2})
    adapted = add_adapters(tiny_model("llama", num_hidden_layers=1), spec, seed=1)
    checkpoint_activations(adapted.get_base_model())
    return LoraStudent(adapted, compile_body=compile_body)


def plain(*, compile_body: bool) -> Student:
    return CausalLMStudent(tiny_model("llama", num_hidden_layers=1), compile_body=compile_body)


@pytest.mark.long
@pytest.mark.parametrize("make", [plain, adapted_with_checkpointing], ids=["plain", "adapters, checkpointing"])
def test_a_compiled_student_learns_as_an_eager_one_and_compiles_once(make: Any, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    eager, compiled = make(compile_body=False), make(compile_body=True)
    state = torch.random.get_rng_state()
    counters.clear()
    compiled.warm_up(SIZE, LENGTH)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in compiled.module.parameters())
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for given in BATCHES:
        (ours, our_gradients), (theirs, their_gradients) = gradients(compiled, given), gradients(eager, given)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert our_gradients.keys() == their_gradients.keys()
        for name, gradient in our_gradients.items():
            torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs, "a batch was compiled for after the warm-up"
    assert eager.module.state_dict().keys() == compiled.module.state_dict().keys()
    compiled.export(tmp_path / "export", ModelCard())


@pytest.mark.long
def test_dropout_follows_from_the_seed_and_acts_in_training_alone() -> None:
    student = CausalLMStudent(tiny_model("llama", num_hidden_layers=1, attention_dropout=0.3), compile_body=True)
    student.warm_up(SIZE, LENGTH)

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return student.head(student.row_states(BATCHES[0]))

    student.module.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    student.module.eval()
    assert torch.equal(logits(1), logits(2))


def test_a_machine_without_a_compiler_is_told_what_to_do() -> None:
    student = plain(compile_body=True)
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "fx_graph_cache": False}),
        pytest.raises(ConfigurationError, match=r"student\.torch_compile: .*cannot be compiled.*install a C\+\+"),
    ):
        student.warm_up(SIZE, LENGTH)


def test_a_student_that_is_not_compiled_warms_up_by_doing_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student = plain(compile_body=False)
    monkeypatch.setattr(student, "row_states", None)
    student.warm_up(SIZE, LENGTH)
