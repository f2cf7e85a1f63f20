"""What a teacher answers with: one payload per sequence, one row per position asked for.

A live teacher, a cache and a store answer with the same classes, so that a training loop never asks where an
answer came from. How each is made is in `encode`, how it becomes bytes in `codec`, and what is learnt from it in
`kd`. Shapes: P positions, N vocabulary entries (ids below N), D hidden width, K kept ids.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stillhouse.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class DenseLogits:
    """All logits. `logits` is `[P, N]`, float32, float16 or bfloat16, untempered."""

    logits: Tensor

    @property
    def num_positions(self) -> int:
        """P."""
        return self.logits.shape[0]

    @property
    def vocabulary_size(self) -> int:
        """N."""
        return self.logits.shape[1]


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Final hidden states `[P, D]`, bfloat16 or float32; the logits are rebuilt with the output head.

    Neither a temperature nor N stands here, since neither changes a hidden state: whoever rebuilds knows both.
    """

    hidden: Tensor

    @property
    def num_positions(self) -> int:
        """P."""
        return self.hidden.shape[0]


@dataclass(frozen=True, slots=True)
class TopKLogits:
    """The K largest logits of each position, and how much the others weigh.

    `token_ids` is `[P, K]` int32, by falling logit, ties by the lower id. `logits` is `[P, K]`, float16 or float32,
    untempered. The four statistics are `[P]` float32, taken over all N ids from the unrounded logits:
    `log_normalizer = logsumexp(t)`, `log_tail_mass = log(sum of softmax(t) outside the K)` (-inf where K = N), and
    the same two of `t / temperature`.
    """

    token_ids: Tensor
    logits: Tensor
    log_normalizer: Tensor
    log_tail_mass: Tensor
    tempered_log_normalizer: Tensor
    tempered_log_tail_mass: Tensor
    temperature: float
    vocabulary_size: int

    @property
    def num_positions(self) -> int:
        """P."""
        return self.token_ids.shape[0]

    @property
    def log_probs(self) -> Tensor:
        """`[P, K]` float32: natural log-probabilities of the ids under softmax(t), over all N."""
        return self.logits.float() - self.log_normalizer[:, None]

    @property
    def tempered_log_probs(self) -> Tensor:
        """The same under softmax(t / temperature)."""
        return self.logits.float() / self.temperature - self.tempered_log_normalizer[:, None]


@dataclass(frozen=True, slots=True)
class SampledCounts:
    """Draws from softmax(t / temperature), as distinct ids and counts.

    Ragged rows laid end to end: row p owns entries `offsets[p]` to `offsets[p + 1]`. `offsets` is `[P + 1]` int64,
    `token_ids` int32 (rising within a row), `counts` int32 (their sum in each row is `draws`), and `entropy` `[P]`
    float32, in nats, of the full distribution at the temperature, so that KL can be reported.
    """

    offsets: Tensor
    token_ids: Tensor
    counts: Tensor
    entropy: Tensor
    draws: int
    temperature: float
    vocabulary_size: int

    @property
    def num_positions(self) -> int:
        """P."""
        return self.entropy.shape[0]


@dataclass(frozen=True, slots=True)
class CandidateLogits:
    """Logits at ids that the caller named, and how much all others weigh.

    `token_ids` is int32, rising: `[K]` where the same ids were asked about at every position, `[P, K]` where each
    had its own. `logits` is `[P, K]`, float32 or float16, untempered. The four statistics are those of `TopKLogits`,
    their tail being all ids that were not named.
    """

    token_ids: Tensor
    logits: Tensor
    log_normalizer: Tensor
    log_tail_mass: Tensor
    tempered_log_normalizer: Tensor
    tempered_log_tail_mass: Tensor
    temperature: float
    vocabulary_size: int

    @property
    def num_positions(self) -> int:
        """P."""
        return self.logits.shape[0]

    @property
    def log_probs(self) -> Tensor:
        """`[P, K]` float32: natural log-probabilities of the ids under softmax(t), over all N."""
        return self.logits.float() - self.log_normalizer[:, None]

    @property
    def tempered_log_probs(self) -> Tensor:
        """The same under softmax(t / temperature)."""
        return self.logits.float() / self.temperature - self.tempered_log_normalizer[:, None]


@dataclass(frozen=True, slots=True)
class OutputHead:
    """What turns hidden states into logits, of any model that `transformers` scores tokens with this way.

        x = (hidden @ weight.T + bias) * scale
        logits = soft_cap * tanh(x / soft_cap)      (where there is a soft_cap)

    `weight` is `[V, D]`, `bias` `[V]` or None. `scale` is Cohere's `logit_scale`, and one over Granite's
    `logits_scaling`; `soft_cap` is Gemma's `final_logit_softcapping`. The N leading rows give the N leading logits.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    _last_converted: list[OutputHead] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.weight.shape[1]

    def to(self, *, dtype: torch.dtype, device: torch.device) -> OutputHead:
        """Return this head in a dtype, on a device; the last conversion is remembered, since a loss asks every time."""
        if (self.weight.dtype, self.weight.device) == (dtype, device):
            return self
        for known in self._last_converted:
            if (known.weight.dtype, known.weight.device) == (dtype, device):
                return known
        bias = None if self.bias is None else self.bias.to(device=device, dtype=dtype)
        converted = replace(self, weight=self.weight.to(device=device, dtype=dtype), bias=bias)
        self._last_converted[:] = [converted]
        return converted

    def logits(self, hidden_rows: Tensor, vocabulary_size: int | None = None) -> Tensor:
        """Return `[p, N]`, the leading N logits (by default all V) of `[p, D]`, in the weight's dtype and device."""
        weight_ND = self.weight[:vocabulary_size]
        bias_N = None if self.bias is None else self.bias[:vocabulary_size].to(weight_ND)
        logits_PN = torch.nn.functional.linear(hidden_rows.to(weight_ND), weight_ND, bias_N)
        if self.scale != 1:
            logits_PN = logits_PN * self.scale
        if self.soft_cap is not None:
            logits_PN = self.soft_cap * torch.tanh(logits_PN / self.soft_cap)
        return logits_PN


Payload = DenseLogits | HiddenStates | TopKLogits | SampledCounts | CandidateLogits


def concatenate(payloads: SequenceOf[Payload]) -> Payload:
    """Return one payload with the rows of all, end to end. A single payload is returned as it is.

    Raises:
        InvalidRequestError: no payloads, or payloads of different kinds, widths, temperatures, draws or ids: rows
            that were not asked for in the same way cannot stand in one payload.
    """
    if not payloads:
        raise InvalidRequestError("payloads must hold at least one payload; got none")
    first = payloads[0]
    if len(payloads) == 1:
        return first
    for index, payload in enumerate(payloads):
        if type(payload) is not type(first):
            raise InvalidRequestError(
                f"payloads must be of one kind: the first is {type(first).__name__}, "
                f"payloads[{index}] is {type(payload).__name__}"
            )
    fields = {f.name: [getattr(payload, f.name) for payload in payloads] for f in dataclass_fields(first)}
    return type(first)(**{name: _joined(first, name, values) for name, values in fields.items()})


def _joined(first: Payload, name: str, values: list[Any]) -> Any:
    """Return one field of a concatenated payload: rows laid end to end, everything else common to all."""
    if name == "offsets":
        starts = accumulate((int(offsets[-1]) for offsets in values), initial=0)
        shifted = [offsets[1:] + start for offsets, start in zip(values, starts, strict=False)]
        return torch.cat([values[0][:1], *shifted])
    is_shared_ids = isinstance(first, CandidateLogits) and name == "token_ids" and first.token_ids.dim() == 1
    common = not isinstance(values[0], Tensor) or is_shared_ids
    if not common:
        if len({(value.dtype, value.shape[1:]) for value in values}) > 1:
            raise InvalidRequestError(
                f"payloads must agree in the dtype and width of {name}; got "
                f"{', '.join(sorted({f'{value.dtype} {tuple(value.shape[1:])}' for value in values}))}"
            )
        return torch.cat(values)
    same = torch.equal if isinstance(values[0], Tensor) else operator.eq
    if not all(same(values[0], value) for value in values):
        raise InvalidRequestError(f"payloads must agree in {name}; got {values}")
    return values[0]
