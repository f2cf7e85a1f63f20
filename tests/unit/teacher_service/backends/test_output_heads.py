"""Logits rebuilt from hidden states are the model's own, whatever the architecture does after its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.encodings import Hidden
from stillhouse.payloads import OutputHead
from stillhouse.request import All, Sequence
from teacher_service.backends.transformers import TransformersBackend
from tests.tiny_models import ARCHITECTURES, VOCABULARY_SIZE, tiny_model

IDS = tuple(torch.randint(3, VOCABULARY_SIZE, (23,), generator=torch.Generator().manual_seed(1)).tolist())


def _own_logits(model: Any, ids: tuple[int, ...] = IDS) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@pytest.mark.filterwarnings("ignore")  # what architectures say about kernels that are not installed here
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_rebuilt_from_hidden_states(architecture: str, tied: bool) -> None:
    model = tiny_model(architecture, tied=tied)
    backend = TransformersBackend(model, name=architecture)
    head = backend.output_head()
    assert head is not None
    assert (head.vocabulary_size, head.hidden_size) == (VOCABULARY_SIZE, backend.describe().hidden_size)
    rows = backend.forward([Sequence(IDS, (), All())]).rows[0]
    own = _own_logits(model)
    torch.testing.assert_close(head.logits(rows), own, atol=1e-3, rtol=0)
    torch.testing.assert_close(backend.head(rows), own, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "scale", "soft_cap", "has_bias"),
    [
        ("llama", 1.0, None, False),
        ("gemma2", 1.0, 5.0, False),
        ("cohere", 0.25, None, False),
        ("granite", 1 / 3, None, False),
        ("hyperclovax", 2.0, None, False),
        ("minicpm3", 0.5, None, False),
        ("phi", 1.0, None, True),
    ],
)
def test_scale_cap_and_bias_are_found(architecture: str, scale: float, soft_cap: float | None, has_bias: bool) -> None:
    head = TransformersBackend(tiny_model(architecture), name=architecture).output_head()
    assert head is not None
    assert head.scale == pytest.approx(scale)
    assert (head.soft_cap, head.bias is not None) == (soft_cap, has_bias)


def test_a_cap_that_the_models_own_logits_never_reach_is_found() -> None:
    model = tiny_model("gemma2", initializer_range=0.002, final_logit_softcapping=30.0)
    assert _own_logits(model).abs().max() < 0.1
    head = TransformersBackend(model, name="flat").output_head()
    assert head is not None
    assert head.soft_cap == 30.0


def test_values_decide_and_not_what_the_config_says() -> None:
    model = tiny_model("llama")
    model.config.logit_scale = 0.25
    model.config.final_logit_softcapping = 3.0
    head = TransformersBackend(model, name="misnamed").output_head()
    assert head is not None
    assert (head.scale, head.soft_cap) == (1.0, None)


def _with_its_own_last_step(step: Any) -> Any:
    """A Llama that does something of its own to the logits."""
    model = tiny_model("llama")
    plain = model.forward

    def forward(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = step(output.logits)
        return output

    model.forward = forward
    return model


@pytest.mark.parametrize(
    "step",
    [
        lambda logits: logits + torch.sin(logits),
        lambda logits: logits * 0.7,
        # The same within reach of the model's own hidden states, and another function beyond.
        lambda logits: torch.where(logits.abs() < 12, logits, 12 * logits.sign()),
        lambda logits: logits[..., :-1],
    ],
    ids=["another nonlinearity", "a scale that the config does not name", "a clamp", "fewer tokens"],
)
def test_a_head_that_is_not_understood_offers_no_hidden_states_and_answers_right(step: Any) -> None:
    model = _with_its_own_last_step(step)
    backend = TransformersBackend(model, name="odd")
    assert backend.output_head() is None
    assert backend.describe().hidden_size == 0
    own = _own_logits(model)
    assert own.shape[1] == backend.describe().vocabulary_size
    rows = backend.forward([Sequence(IDS, (), All())]).rows[0]
    torch.testing.assert_close(backend.head(rows), own, atol=1e-3, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "granite", "phi", "opt"])
def test_a_caller_rebuilds_the_logits_from_bytes_at_any_temperature(architecture: str, temperature: float) -> None:
    from stillhouse.codec import decode_payload, encode_payload
    from stillhouse.encode import encode_hidden
    from stillhouse.payloads import HiddenStates

    model = tiny_model(architecture, tied=False)
    backend = TransformersBackend(model, name=architecture)
    rows = backend.forward([Sequence(IDS, (), All())]).rows[0]
    received = decode_payload(encode_payload(encode_hidden(rows, Hidden("float32"))))
    assert isinstance(received, HiddenStates)
    own = backend.output_head()
    assert own is not None
    # What travels of a head: its numbers.
    head = OutputHead(own.weight.clone(), None if own.bias is None else own.bias.clone(), own.scale, own.soft_cap)
    rebuilt = torch.log_softmax(head.logits(received.hidden, 90) / temperature, dim=1)
    expected = torch.log_softmax(_own_logits(model)[:, :90] / temperature, dim=1)
    torch.testing.assert_close(rebuilt, expected, atol=1e-3, rtol=0)
