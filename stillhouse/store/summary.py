"""What a store's answers look like: how sure the teacher was, how much of it was kept, and its first choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from stillhouse.payloads import (
    CandidateLogits,
    DenseLogits,
    HiddenStates,
    OutputHead,
    Payload,
    SampledCounts,
    TopKLogits,
)
from stillhouse.store.reader import Store, StorePart

MAX_DENSE_ROWS: Final = 64
"""Positions of a sample whose every logit is looked at."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over some positions, at the store's temperature; None for what its answers do not tell.

    `entropy` in nats; `kept_mass` is the share of the teacher's distribution at the ids that are named; `ids` is how
    many of them there are.
    """

    positions: int
    entropy: float | None
    kept_mass: float | None
    ids: float | None


def summarise(store: Store, num_samples: int = 32) -> Summary:
    """Look at some samples, evenly spread over what the store holds."""
    payloads = [store.train[index].payload for index in _spread(store.train, num_samples)]
    head, temperature = store.output_head(), store.manifest.plan.temperature
    entropy = [part for payload in payloads for part in _entropies(payload, head, store, temperature)]
    return Summary(
        positions=sum(payload.num_positions for payload in payloads),
        entropy=_mean(entropy),
        kept_mass=_mean([-torch.expm1(p.tempered_log_tail_mass) for p in payloads if _has_tail(p)]),  # type: ignore[union-attr]
        ids=_mean([_widths(payload) for payload in payloads if not isinstance(payload, DenseLogits | HiddenStates)]),
    )


def choices(payload: Payload, row: int, store: Store, count: int = 4) -> list[tuple[int, float]]:
    """Return the ids that a row of an answer gives the most to, and their probabilities at the store's temperature."""
    match payload:
        case SampledCounts(offsets=offsets):
            part = slice(int(offsets[row]), int(offsets[row + 1]))
            ids, probabilities = payload.token_ids[part], payload.counts[part] / payload.draws
        case TopKLogits():
            ids, probabilities = payload.token_ids[row], payload.tempered_log_probs[row].exp()
        case CandidateLogits(token_ids=named):
            ids = named if named.dim() == 1 else named[row]
            probabilities = payload.tempered_log_probs[row].exp()
        case DenseLogits() | HiddenStates():
            logits = _logits(payload, slice(row, row + 1), store.output_head(), store)
            probabilities = (logits[0] / store.manifest.plan.temperature).softmax(-1)
            ids = torch.arange(len(probabilities))
    order = probabilities.argsort(descending=True, stable=True)[:count]
    return list(zip(ids[order].tolist(), probabilities[order].tolist(), strict=True))


def _spread(part: StorePart, count: int) -> list[int]:
    held = [index for index in range(len(part)) if part.has(index)] if part.num_held < len(part) else range(len(part))
    step = max(1, len(held) // count)
    return list(held[::step][:count])


def _entropies(payload: Payload, head: OutputHead | None, store: Store, temperature: float) -> list[Tensor]:
    if isinstance(payload, SampledCounts):
        return [payload.entropy]
    if not isinstance(payload, DenseLogits | HiddenStates):
        return []
    step = max(1, payload.num_positions // MAX_DENSE_ROWS)
    log_probs = (_logits(payload, slice(None, None, step), head, store) / temperature).log_softmax(-1)
    return [torch.special.entr(log_probs.exp()).sum(-1)]


def _logits(payload: DenseLogits | HiddenStates, rows: slice, head: OutputHead | None, store: Store) -> Tensor:
    if isinstance(payload, DenseLogits):
        return payload.logits[rows].float()
    assert head is not None  # noqa: S101 - a store of hidden states has one, or could not be opened
    return head.logits(payload.hidden[rows], store.manifest.plan.vocabulary_size).float()


def _has_tail(payload: Payload) -> bool:
    return isinstance(payload, TopKLogits | CandidateLogits)


def _widths(payload: Payload) -> Tensor:
    if isinstance(payload, SampledCounts):
        return payload.offsets.diff().float()
    return torch.full((payload.num_positions,), float(payload.logits.shape[1]))  # type: ignore[union-attr]


def _mean(parts: list[Tensor]) -> float | None:
    return float(torch.cat(parts).double().mean()) if parts else None
