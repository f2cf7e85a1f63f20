"""What a teacher must answer, worked out without the service: the model alone, one document at a time, in float64.

Nothing here shares a line with what serves: no batches, no padding, no packing, no chunks of rows, no encoder. Each
tolerance has its reason beside it. Shapes: L tokens, P positions, N vocabulary entries, D hidden width, K ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK, ValueType
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import LogitsRequest, Sequence

VOCABULARY_SIZE = 512
MAX_SEQUENCE_TOKENS = 512

# How far a logit computed in such a dtype may lie from the same model's in float64, for the tiny model below. The
# float32 one measures 2e-5 alone; neighbours and padding add as much. bfloat16 keeps 8 bits at each of its steps.
LOGIT_TOLERANCE = {"float32": 2e-4, "bfloat16": 1.0}

# Half a unit in the last place, relative to the value.
_ROUNDING: dict[ValueType, float] = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# A statistic is a float32 number, of a sum of float32 exponentials.
_STATISTIC_TOLERANCE = 1e-5

# One draw in 10^13 has an id of less than this log-probability: no test makes so many.
_LEAST_LOG_PROBABILITY = -36.0


def save_tiny_model(folder: Path, seed: int = 11) -> Path:
    """Write a random Llama of two layers as transformers opens it, without a tokenizer; return the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_SEQUENCE_TOKENS,
        # Ten times the usual: logits of about +-8, so that an answer to another question is far from the right one.
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass
class Reference:
    """A model's own answers. `compute_dtype` is that of the service, whose weights are rounded to it."""

    folder: Path
    compute_dtype: str = "float32"
    _rows: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.compute_dtype))
        self._model = model.double().eval()  # type: ignore[no-untyped-call]  # as transformers leaves it
        self.tolerance = LOGIT_TOLERANCE[self.compute_dtype]

    def logits(self, sequence: Sequence) -> Tensor:
        """Return `[P, V]` float64: the logits at the positions asked for."""
        return self._whole(sequence)[0][list(sequence.position_indices())]

    def hidden(self, sequence: Sequence) -> Tensor:
        """Return `[P, D]` float64: what the model's last norm gives at the positions asked for."""
        return self._whole(sequence)[1][list(sequence.position_indices())]

    @torch.inference_mode()
    def _whole(self, sequence: Sequence) -> tuple[Tensor, Tensor]:
        """Each document is run by itself: so none can see another, and positions count from 0 in each."""
        lengths = sequence.segment_lengths or (len(sequence.token_ids),)
        key = (sequence.token_ids, lengths)
        if key not in self._rows:
            ends = list(accumulate(lengths))
            documents = [sequence.token_ids[end - n : end] for end, n in zip(ends, lengths, strict=True)]
            outputs = [self._model(torch.tensor([ids]), output_hidden_states=True) for ids in documents]
            logits_LV = torch.cat([output.logits[0] for output in outputs])
            hidden_LD = torch.cat([output.hidden_states[-1][0] for output in outputs])
            self._rows[key] = logits_LV, hidden_LD
        return self._rows[key]

    def mistakes(self, request: LogitsRequest, payloads: SequenceOf[Payload]) -> list[str]:
        """Return what is wrong with the answer to a request, one line for each fault; none where it is right."""
        if len(payloads) != len(request.sequences):
            return [f"{len(request.sequences)} payloads were asked for, {len(payloads)} came"]
        n = request.vocabulary_size or VOCABULARY_SIZE
        found = []
        for index, (sequence, payload) in enumerate(zip(request.sequences, payloads, strict=True)):
            if payload.num_positions != sequence.num_positions:
                found.append(f"sequences[{index}]: {payload.num_positions} rows, not {sequence.num_positions}")
                continue
            faults = self._faults(request, sequence, payload, n)
            found += [f"{request.encoding}, sequences[{index}] {sequence.positions}: {fault}" for fault in faults]
        return found

    def _faults(self, request: LogitsRequest, sequence: Sequence, payload: Payload, n: int) -> Iterator[str]:
        encoding, t_PN = request.encoding, self.logits(sequence)[:, :n]
        match encoding, payload:
            case Dense(value_type), DenseLogits(logits):
                yield from self._compare("logits", logits, t_PN, value_type)
            case Hidden(value_type), HiddenStates(hidden):
                yield from self._compare("hidden", hidden, self.hidden(sequence), value_type)
            case TopK(k, value_type), TopKLogits():
                ids = payload.token_ids.long()
                yield from self._compare("logits", payload.logits, t_PN.gather(1, ids), value_type)
                yield from self._top_faults(ids, payload.logits, t_PN, k)
                yield from self._statistics(payload, ids, t_PN, request.temperature)
            case Candidates(token_ids, value_type), CandidateLogits():
                named = torch.tensor(token_ids or sequence.candidate_ids)
                if not torch.equal(payload.token_ids.long(), named):
                    yield "other token_ids than were named"
                    return
                ids = named.expand(len(t_PN), -1)
                yield from self._compare("logits", payload.logits, t_PN.gather(1, ids), value_type)
                yield from self._statistics(payload, ids, t_PN, request.temperature)
            case Sampled(draws, _), SampledCounts():
                yield from self._draw_faults(payload, t_PN, draws, request.temperature)
            case _:
                yield f"a {type(payload).__name__} came"

    def _compare(self, name: str, given: Tensor, expected: Tensor, value_type: ValueType) -> Iterator[str]:
        if given.shape != expected.shape or str(given.dtype) != f"torch.{value_type}":
            yield f"{name} is {given.dtype} {list(given.shape)}, not {value_type} {list(expected.shape)}"
            return
        allowed = self.tolerance + _ROUNDING[value_type] * expected.abs()
        excess = (given.double() - expected).abs() - allowed
        if not (excess <= 0).all():  # a NaN is no answer either
            yield f"{name} are off by {float((given.double() - expected).abs().max()):g}"

    def _top_faults(self, ids_PK: Tensor, logits_PK: Tensor, t_PN: Tensor, k: int) -> Iterator[str]:
        if ids_PK.shape[1] != k or (ids_PK.sort(dim=1).values.diff(dim=1) == 0).any():
            yield "top_k ids are not k different ones"
        if (logits_PK.double().diff(dim=1) > 0).any():
            yield "top_k logits rise"
        least_kept = t_PN.gather(1, ids_PK).amin(dim=1)
        largest_left = t_PN.scatter(1, ids_PK, -math.inf).amax(dim=1)
        if (largest_left > least_kept + 2 * self.tolerance).any():
            yield "an id outside the top k has a larger logit than one inside"

    def _statistics(
        self, payload: TopKLogits | CandidateLogits, ids_PK: Tensor, t_PN: Tensor, temperature: float
    ) -> Iterator[str]:
        if payload.temperature != temperature or payload.vocabulary_size != t_PN.shape[1]:
            yield f"it is about T = {payload.temperature} and N = {payload.vocabulary_size}"
        statistics = (
            (1.0, payload.log_normalizer, payload.log_tail_mass),
            (temperature, payload.tempered_log_normalizer, payload.tempered_log_tail_mass),
        )
        for t, log_normalizer, log_tail_mass in statistics:
            whole = torch.logsumexp(t_PN / t, dim=1)
            tail = torch.logsumexp((t_PN / t).scatter(1, ids_PK, -math.inf), dim=1) - whole
            # A log-normaliser moves at most as far as the logits do; a log mass, the difference of two, twice as far.
            slack = self.tolerance / t + _STATISTIC_TOLERANCE * (1 + whole.abs())
            if not ((log_normalizer.double() - whole).abs() <= slack).all():
                yield f"the log-normaliser at T = {t} is off"
            given = log_tail_mass.double()
            if not ((given == tail) | ((given - tail).abs() <= 2 * slack)).all():
                yield f"the log tail mass at T = {t} is off"

    def _draw_faults(self, payload: SampledCounts, t_PN: Tensor, draws: int, temperature: float) -> Iterator[str]:
        if (payload.draws, payload.temperature, payload.vocabulary_size) != (draws, temperature, t_PN.shape[1]):
            yield "it is about other draws, another T or another N"
        log_p_PN = torch.log_softmax(t_PN / temperature, dim=1)
        entropy = -(log_p_PN.exp() * log_p_PN).sum(dim=1)
        # The derivative of the entropy is the spread of log p, which is a few nats.
        slack = 10 * self.tolerance / temperature + _STATISTIC_TOLERANCE * (1 + entropy)
        if not ((payload.entropy.double() - entropy).abs() <= slack).all():
            yield f"the entropy is off by {float((payload.entropy.double() - entropy).abs().max()):g}"
        rows = torch.repeat_interleave(torch.arange(len(t_PN)), payload.offsets.diff())
        drawn = torch.zeros(len(t_PN), dtype=torch.int64).index_add_(0, rows, payload.counts.long())
        if not (drawn == draws).all():
            yield f"the counts of a row do not add up to {draws}"
        if (log_p_PN[rows, payload.token_ids.long()] < _LEAST_LOG_PROBABILITY).any():
            yield "an id was drawn that has no mass"
