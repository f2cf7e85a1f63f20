"""Any causal language model of `transformers`.

Batches are right-padded rectangles without an attention mask: padding comes after every token that could be asked
about, so a causal model never sees it. Position ids restart in every segment, and from them `transformers` itself
builds block-causal masks, sliding windows included. Where that is seen not to keep segments apart (a recurrent
state, or an attention kernel that looks at one row only), and in deterministic mode, each segment becomes a row of
its own. Shapes: B batch rows, L tokens, P positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import structlog
import torch
from torch import Tensor

from stillhouse.device_rows.choice import programs_name
from stillhouse.errors import ConfigurationError
from stillhouse.fingerprint import tokens_fingerprint
from stillhouse.payloads import OutputHead
from stillhouse.request import Sequence
from teacher_service.backends.base import BackendDescription, HiddenRows, TeacherBackend
from teacher_service.backends.output_heads import UnderstoodHead, agree, understood_head
from teacher_service.backends.placement import Placement
from teacher_service.backends.rotary_lengths import RotaryLengths
from teacher_service.backends.shapes import FittedShape, FixedShapes, Pass, Shapes
from teacher_service.progress import report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a config names no bound of its own, as models without learnt positions may not.
_UNBOUNDED_SEQUENCE_TOKENS = 2**20

# Twice as many ids as this are looked at: every real vocabulary has them.
_PROBE_TOKENS = 8

Row = tuple[SequenceOf[int], SequenceOf[int]]
"""Token ids, and the lengths of the segments in them."""

logger = structlog.get_logger(__name__)


class TransformersBackend(TeacherBackend):
    """Runs a model in eval mode under `torch.inference_mode`, without a key-value cache.

    Args:
        model: the model, on its device or devices.
        name: what to call it.
        tokens: its tokenizer's, by id; empty where there is none.
        encode: its tokenizer's way from text to ids; None where there is none.
        pass_tokens: None is throughput mode. A number is deterministic mode, in passes of so many tokens each,
            padding included; 1 is one row a pass, without padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        tokens: tuple[str, ...] = (),
        encode: Callable[[str], list[int]] | None = None,
        pass_tokens: int | None = None,
    ) -> None:
        # Typed loosely: what a model takes and gives differs by architecture.
        self._model: Any = cast("Any", model)
        self._encode = encode
        self._place = Placement(model)
        report("probe")
        vocabulary_size = self._probe_vocabulary(name)
        self._understood = self._probe_head()
        config = self._model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or _UNBOUNDED_SEQUENCE_TOKENS
        self._rotary = RotaryLengths(model)
        self._shapes = self._choose_shapes(pass_tokens, longest)
        self._keeps_segments_apart = pass_tokens is None and not self._rotary.follows_length and self._probe_segments()
        report("fingerprint")
        self._description = BackendDescription(
            model=name,
            weights_fingerprint=self._place.weights_fingerprint(),
            tokenizer_fingerprint=tokens_fingerprint(tokens) if tokens else "",
            vocabulary_size=vocabulary_size,
            hidden_size=self._understood.head.hidden_size if self._understood else 0,
            max_sequence_tokens=longest,
            compute_dtype=str(model.dtype).removeprefix("torch."),
            device_kind=self._place.device_kind(),
            library_version=str(torch.__version__),
            attention=str(config._attn_implementation),  # noqa: SLF001 - where transformers keeps what it chose
            mode="throughput" if pass_tokens is None else "deterministic",
            tokens=tokens,
            shapes=""
            if pass_tokens is None
            else f"{self._shapes} on {self._place.machine_kind()}, {_libraries(self._place.input_device)}",
        )

    def describe(self) -> BackendDescription:
        """Return what was worked out while loading."""
        return self._description

    def token_ids(self, text: str) -> list[int] | None:
        """Return what the model's own tokenizer makes of a text, its special tokens included."""
        return None if self._encode is None else self._encode(text)

    def output_head(self) -> OutputHead | None:
        """Return the model's own head, scale and soft cap; None where they do not explain its logits."""
        return self._understood.head if self._understood else None

    def padded_tokens(self, lengths: SequenceOf[int]) -> int:
        """Return the size of the rectangles that sequences of these lengths run in."""
        return sum(one.height * one.width for one in self._shapes.passes(lengths))

    @torch.inference_mode()
    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        """Return `[P, D]` for each sequence, or `[P, V]` where the head is not understood (see `head`)."""
        rows = [row for sequence in sequences for row in self._rows_of(sequence)]
        done: dict[int, Tensor] = {}
        computed = 0
        for one in self._shapes.passes([len(ids) for ids, _ in rows]):
            hidden_BLD = self._run([rows[index] for index in one.rows], one)
            computed += one.height * one.width
            done |= zip(one.rows, hidden_BLD, strict=False)
        in_order = (done[index][: len(ids)] for index, (ids, _) in enumerate(rows))
        asked = tuple(self._asked(sequence, in_order) for sequence in sequences)
        return HiddenRows(asked, padding_tokens=computed - sum(len(sequence.token_ids) for sequence in sequences))

    @torch.inference_mode()
    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return `[p, V]`: the output head's logits, or the rows as they are where `forward` gave logits already."""
        return self._understood.head.logits(hidden_rows) if self._understood else hidden_rows

    def _rows_of(self, sequence: Sequence) -> list[Row]:
        """Return the sequence as rows of ids with their segment lengths: one with all of them, or one for each."""
        lengths = sequence.segment_lengths or (len(sequence.token_ids),)
        if self._keeps_segments_apart:
            return [(sequence.token_ids, lengths)]
        ids = iter(sequence.token_ids)
        return [(tuple(islice(ids, length)), (length,)) for length in lengths]

    def _asked(self, sequence: Sequence, hidden: Any) -> Tensor:
        num_rows = 1 if self._keeps_segments_apart else max(1, len(sequence.segment_lengths))
        rows = list(islice(hidden, num_rows))
        whole_LD = rows[0] if len(rows) == 1 else torch.cat(rows)
        # Copied, so that the answer's place in memory does not depend on its place in the pass.
        return whole_LD[torch.tensor(list(sequence.position_indices()), device=whole_LD.device)]

    def _run(self, rows: SequenceOf[Row], one: Pass) -> Tensor:
        ids_BL = torch.zeros(one.height, one.width, dtype=torch.int64)
        positions_BL = torch.arange(one.width).repeat(one.height, 1)
        for index, (ids, segment_lengths) in enumerate(rows):
            ids_BL[index, : len(ids)] = torch.tensor(ids)
            positions_BL[index] = _position_ids(segment_lengths, one.width)
        return self._hidden(ids_BL, positions_BL)

    def _hidden(self, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
        self._rotary.forget()
        inputs = self._inputs(ids_BL, positions_BL)
        if self._understood is None:
            logits: Tensor = self._model(**inputs).logits
            return logits
        hidden: Tensor = self._understood.base(**inputs).last_hidden_state
        return hidden

    def _inputs(self, ids_BL: Tensor, positions_BL: Tensor) -> dict[str, Any]:
        device = self._place.input_device
        return {"input_ids": ids_BL.to(device), "position_ids": positions_BL.to(device), "use_cache": False}

    def _choose_shapes(self, pass_tokens: int | None, longest: int) -> Shapes:
        if pass_tokens is None:
            return FittedShape(self._rotary.longest_shared)
        if self._rotary.follows_length:
            return FixedShapes(1, longest)
        shapes = FixedShapes(pass_tokens, longest)
        if not any(shapes.shared()):
            return shapes
        if not _mixes_rows(self._model.config.get_text_config()) and all(map(self._keeps_bits, shapes.shared())):
            return shapes
        logger.warning("one_row_a_pass", reason="the bits of a row depend on the others of its pass")
        return FixedShapes(1, longest)

    @torch.inference_mode()
    def _probe_vocabulary(self, name: str) -> int:
        """Return V, having seen that the model runs at all."""
        try:
            logits_BLV: Tensor = self._model(**self._probe_inputs()).logits
        except (AttributeError, TypeError) as error:
            raise ConfigurationError(f"model {name!r} cannot be served: it takes no position ids ({error})") from error
        except (RuntimeError, IndexError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(
                f"model {name!r} cannot be served: a pass over the ids 0 to {_PROBE_TOKENS - 1} failed with "
                f"{type(error).__name__}: {reason}; see that its config.json goes with its weights, that it has so "
                "many ids and positions, and that the device has the memory"
            ) from error
        if not torch.isfinite(logits_BLV).all():
            raise ConfigurationError(
                f"model {name!r} gives logits that are not finite in {logits_BLV.dtype}: its weights are damaged, or "
                "the dtype is too narrow for it (set dtype to float32)"
            )
        return logits_BLV.shape[-1]

    @torch.inference_mode()
    def _probe_head(self) -> UnderstoodHead | None:
        return understood_head(self._model, self._probe_inputs())

    @torch.inference_mode()
    def _probe_segments(self) -> bool:
        """Return whether restarting position ids keep a segment from seeing the one before it, in two rows at once."""
        first, second = tuple(range(_PROBE_TOKENS)), tuple(range(_PROBE_TOKENS, 0, -1))
        alone = self._run([(second, (_PROBE_TOKENS,))], Pass((0,), 1, _PROBE_TOKENS))[0]
        both = (_PROBE_TOKENS, _PROBE_TOKENS)
        packed = self._run([(first + second, both), (second + second, both)], Pass((0, 1), 2, 2 * _PROBE_TOKENS))
        return all(agree(row[_PROBE_TOKENS:], alone) for row in packed)

    @torch.inference_mode()
    def _keeps_bits(self, shape: Pass) -> bool:
        """Return whether a row has the same bits first and alone as last among others, in one shape."""
        probe = [index % (2 * _PROBE_TOKENS) for index in range(shape.width)]
        alone = self._run([(probe, (shape.width,))], shape)[0]
        among = self._run([*[(probe[::-1], (shape.width,))] * (shape.height - 1), (probe, (shape.width,))], shape)[-1]
        return torch.equal(alone, among)

    def _probe_inputs(self) -> dict[str, Any]:
        ids_BL = torch.arange(_PROBE_TOKENS).unsqueeze(0)
        return self._inputs(ids_BL, ids_BL)


def _position_ids(segment_lengths: SequenceOf[int], longest: int) -> Tensor:
    """Return `[longest]`: positions from 0 in every segment; padding lengthens the last."""
    before = segment_lengths[:-1]
    return torch.cat([torch.arange(length) for length in (*before, longest - sum(before))])


def _libraries(device: torch.device) -> str:
    """Return what beside torch decides over bits: the model's code, and what an encoding's exponentials are made by."""
    named = [f"{name} {version(name)}" for name in ("transformers", "numpy")]
    return ", ".join(named if device.type == "cpu" else [*named, f"rows by {programs_name(device)}"])


def _mixes_rows(config: Any) -> bool:
    """Return whether tokens are gathered by expert: each expert's product then has a shape that all rows decide."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in names)
