"""Some rows of a payload, as views of it: what lets the loss run over chunks of rows."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits


def slice_rows(payload: Payload, start: int, stop: int) -> Payload:
    """Return the rows from `start` up to `stop`; nothing is copied but the offsets of ragged rows."""
    rows = slice(start, stop)
    match payload:
        case DenseLogits(logits):
            return DenseLogits(logits[rows])
        case HiddenStates(hidden):
            return HiddenStates(hidden[rows])
        case TopKLogits():
            return replace(
                payload,
                token_ids=payload.token_ids[rows],
                logits=payload.logits[rows],
                log_normalizer=payload.log_normalizer[rows],
                log_tail_mass=payload.log_tail_mass[rows],
                tempered_log_normalizer=payload.tempered_log_normalizer[rows],
                tempered_log_tail_mass=payload.tempered_log_tail_mass[rows],
            )
        case SampledCounts():
            offsets = payload.offsets[start : stop + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            return replace(
                payload,
                offsets=offsets - offsets[0],
                token_ids=payload.token_ids[entries],
                counts=payload.counts[entries],
                entropy=payload.entropy[rows],
            )
        case CandidateLogits():
            return replace(
                payload,
                token_ids=payload.token_ids if payload.token_ids.dim() == 1 else payload.token_ids[rows],
                logits=payload.logits[rows],
                log_normalizer=payload.log_normalizer[rows],
                log_tail_mass=payload.log_tail_mass[rows],
                tempered_log_normalizer=payload.tempered_log_normalizer[rows],
                tempered_log_tail_mass=payload.tempered_log_tail_mass[rows],
            )
