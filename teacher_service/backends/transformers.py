"""Any causal language model of `transformers`, on one device.

Batches are right-padded rectangles without an attention mask: padding comes after every token that could be asked
about, so a causal model never sees it. Position ids restart in every segment, and from them `transformers` itself
builds block-causal masks, sliding windows included. Where that is seen not to keep segments apart (a recurrent
state, or an attention kernel that looks at one row only), each segment becomes a row of its own. Shapes: B batch
rows, L tokens, P positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stillhouse.errors import ConfigurationError
from stillhouse.fingerprint import tokens_fingerprint, weights_fingerprint
from stillhouse.models import DtypeName, has_tokenizer, load_causal_lm, load_tokenizer
from stillhouse.request import Sequence
from stillhouse.vocabulary import tokenizer_tokens
from teacher_service.backends.base import BackendDescription, HiddenRows, TeacherBackend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a config names no bound of its own, as models without learnt positions may not.
_UNBOUNDED_SEQUENCE_TOKENS = 2**20

# What two ways to the same values may differ by, relative to the largest; float32 rounding is a tenth of it.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# Twice as many ids as this are looked at: every real vocabulary has them.
_PROBE_TOKENS = 8


class TransformersBackend(TeacherBackend):
    """Runs a model in eval mode under `torch.inference_mode`, without a key-value cache."""

    def __init__(self, model: PreTrainedModel, *, name: str, tokens: tuple[str, ...] = ()) -> None:
        # Typed loosely: what a model takes and gives differs by architecture.
        self._model = untyped = cast("Any", model)
        self._base: Any = untyped.base_model
        self._head: Any = untyped.get_output_embeddings()
        self._device = model.device
        self._description = self._describe(model, name, tokens)
        self._keeps_segments_apart = self._probe_segments()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        dtype: DtypeName = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> TransformersBackend:
        """Load the model, and the tokenizer's tokens where one lies beside it.

        Raises:
            ConfigurationError: the folder holds no model that can be run here.
        """
        model = load_causal_lm(
            folder,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        tokens: tuple[str, ...] = ()
        if has_tokenizer(folder):
            tokens = tokenizer_tokens(load_tokenizer(folder, trust_remote_code=trust_remote_code))
        return cls(model, name=name, tokens=tokens)

    def describe(self) -> BackendDescription:
        """Return what was worked out while loading."""
        return self._description

    @torch.inference_mode()
    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        """Return `[P, D]` for each sequence, or `[P, V]` where the head could not be told apart (see `head`)."""
        segments = [sequence.segment_lengths or (len(sequence.token_ids),) for sequence in sequences]
        if self._keeps_segments_apart:
            # One row a sequence, its segments side by side.
            row_ids = [list(sequence.token_ids) for sequence in sequences]
            hidden_BLD = self._run(row_ids, segments)
            whole = list(hidden_BLD)
        else:
            row_ids = [ids for s, lengths in zip(sequences, segments, strict=True) for ids in _cut(s, lengths)]
            hidden_BLD = self._run(row_ids, [(len(ids),) for ids in row_ids])
            rows = zip(hidden_BLD, row_ids, strict=True)
            whole = [torch.cat([row[: len(ids)] for row, ids in islice(rows, len(lengths))]) for lengths in segments]
        asked = tuple(
            hidden_LD[torch.tensor(list(sequence.position_indices()), device=self._device)]
            for hidden_LD, sequence in zip(whole, sequences, strict=True)
        )
        return HiddenRows(asked, padding_tokens=hidden_BLD.shape[0] * hidden_BLD.shape[1] - sum(map(len, row_ids)))

    @torch.inference_mode()
    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return `[p, V]`: the output head's logits, or the rows as they are where `forward` gave logits already."""
        if self._head is None:
            return hidden_rows
        logits: Tensor = self._head(hidden_rows)
        return logits

    def _run(self, row_ids: SequenceOf[SequenceOf[int]], segments: SequenceOf[SequenceOf[int]]) -> Tensor:
        longest = max(map(len, row_ids))
        ids_BL = torch.zeros(len(row_ids), longest, dtype=torch.int64)
        for row, ids in enumerate(row_ids):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
        positions_BL = torch.stack([_position_ids(lengths, longest) for lengths in segments])
        return self._hidden(ids_BL.to(self._device), positions_BL.to(self._device))

    def _hidden(self, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
        inputs = {"input_ids": ids_BL, "position_ids": positions_BL, "use_cache": False}
        if self._head is None:
            logits: Tensor = self._model(**inputs).logits
            return logits
        hidden: Tensor = self._base(**inputs).last_hidden_state
        return hidden

    def _describe(self, model: PreTrainedModel, name: str, tokens: tuple[str, ...]) -> BackendDescription:
        vocabulary_size, hidden_size = self._probe_head(name)
        config = model.config.get_text_config()
        return BackendDescription(
            model=name,
            weights_fingerprint=weights_fingerprint(model.state_dict()),
            tokenizer_fingerprint=tokens_fingerprint(tokens) if tokens else "",
            vocabulary_size=vocabulary_size,
            hidden_size=hidden_size,
            max_sequence_tokens=getattr(config, "max_position_embeddings", None) or _UNBOUNDED_SEQUENCE_TOKENS,
            compute_dtype=str(model.dtype).removeprefix("torch."),
            device_kind=_device_kind(self._device),
            library_version=str(torch.__version__),
            attention=str(config._attn_implementation),  # noqa: SLF001 - where transformers keeps what it chose
            mode="throughput",
            tokens=tokens,
        )

    @torch.inference_mode()
    def _probe_head(self, name: str) -> tuple[int, int]:
        """Run a few tokens both ways: return V, and D where the output head alone explains the logits, else 0.

        Soft-capping, a logit scale or an architecture that keeps its head elsewhere make the two differ; then the
        model's own logits stand in for the hidden states, so that the answers are right in any case.
        """
        ids_BL = torch.arange(_PROBE_TOKENS, device=self._device).unsqueeze(0)
        try:
            logits_BLV: Tensor = self._model(input_ids=ids_BL, position_ids=ids_BL, use_cache=False).logits
        except (AttributeError, TypeError) as error:
            raise ConfigurationError(f"model {name!r} cannot be served: it takes no position ids ({error})") from error
        if not torch.isfinite(logits_BLV).all():
            raise ConfigurationError(
                f"model {name!r} gives logits that are not finite in {logits_BLV.dtype}: its weights are damaged, or "
                "the dtype is too narrow for it (set dtype to float32)"
            )
        vocabulary_size = logits_BLV.shape[-1]
        if self._head is not None:
            hidden_BLD = self._hidden(ids_BL, ids_BL)
            if _agree(self._head(hidden_BLD), logits_BLV):
                return vocabulary_size, hidden_BLD.shape[-1]
        self._head = None
        return vocabulary_size, 0

    @torch.inference_mode()
    def _probe_segments(self) -> bool:
        """Return whether restarting position ids keep a segment from seeing the one before it, in two rows at once."""
        first, second = list(range(_PROBE_TOKENS)), list(range(_PROBE_TOKENS, 0, -1))
        alone = self._run([second], [(_PROBE_TOKENS,)])[0]
        packed = self._run([first + second, second + second], [(_PROBE_TOKENS, _PROBE_TOKENS)] * 2)
        return all(_agree(row[_PROBE_TOKENS:], alone) for row in packed)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    difference = (ours.float() - theirs.float()).abs().max()
    return bool(difference <= _TOLERANCE[theirs.dtype] * theirs.float().abs().max())


def _cut(sequence: Sequence, segment_lengths: SequenceOf[int]) -> Iterator[list[int]]:
    ids = iter(sequence.token_ids)
    return (list(islice(ids, length)) for length in segment_lengths)


def _position_ids(segment_lengths: SequenceOf[int], longest: int) -> Tensor:
    """Return `[longest]`: positions from 0 in every segment; padding lengthens the last."""
    before = segment_lengths[:-1]
    return torch.cat([torch.arange(length) for length in (*before, longest - sum(before))])


def _device_kind(device: torch.device) -> str:
    # Kernels, and with them the low bits, differ from one GPU model to another.
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
