"""Documents to token ids, and to which of them are to be learnt.

Text carries the special tokens that the tokenizer itself puts around a sequence (BOS for some, nothing for others),
and ends in its end-of-sequence token, so that a student learns to stop and packed documents stand apart. A
conversation is exactly what the chat template renders. Ids from `.bin` shards are taken as they are.
Knows nothing of blocks or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stillhouse.data.chat import UnreadableTemplateError, assistant_spans, marks_generation
from stillhouse.data.items import (
    Conversation,
    Encoded,
    Item,
    Mask,
    Message,
    Place,
    PromptCompletion,
    Text,
    TokenIds,
    Tokens,
)
from stillhouse.data.shards import cut_shard
from stillhouse.data.spec import DataSpec
from stillhouse.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BATCH_ITEMS: Final = 256
MAX_BATCH_CHARACTERS: Final = 4 << 20
"""What is tokenised at a time: enough to keep a fast tokenizer's threads busy, and a bound on memory."""


class DocumentTokenizer:
    """Tokenises documents under a spec.

    Args:
        tokenizer: a tokenizer of transformers.
        spec: the corpus' preparation.
        vocabulary_size: ids at or above it are refused.

    Raises:
        DataError: the chat template cannot be read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, vocabulary_size: int) -> None:
        self._tokenizer: Any = tokenizer
        self._spec = spec
        self._vocabulary_size = vocabulary_size
        self._template = chat_template(tokenizer, spec)
        self._prefix, self._suffix = _special_tokens_around(tokenizer)
        eos = tokenizer.eos_token_id if spec.append_eos else None
        if isinstance(eos, int) and self._suffix[-1:] != (eos,):
            self._suffix = (*self._suffix, eos)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self._end_marks = tuple(
            sorted({*tokenizer.all_special_tokens, *(token.content for token in added if token.special)})
        )
        boundary = spec.boundary_token_id
        self._boundary = boundary if boundary is not None else tokenizer.eos_token_id

    def encode(self, items: Iterable[Item]) -> Iterator[Encoded]:
        """Yield the ids of each document, or piece of one, in order.

        Raises:
            DataError: a template that fails or hides what the assistant says, or an id outside the vocabulary.
        """
        for batch in _batches(items):
            texts = iter(self._tokenize([item.text for item in batch if isinstance(item, Text)]))
            for item in batch:
                match item:
                    case Text():
                        yield self._text(item, next(texts))
                    case PromptCompletion():
                        yield self._prompt_completion(item)
                    case Conversation():
                        yield self._conversation(item)
                    case Tokens():
                        yield from cut_shard(item, boundary=self._boundary, vocabulary_size=self._vocabulary_size)

    def _text(self, item: Text, token_ids: Sequence[int]) -> Encoded:
        whole = (*(self._prefix if item.first else ()), *token_ids, *(self._suffix if item.last else ()))
        return Encoded(item.place, _array(whole), np.ones(len(whole), dtype=np.bool_), item.last)

    def _prompt_completion(self, item: PromptCompletion) -> Encoded:
        prompt, completion = self._tokenize([item.prompt, item.completion])
        whole = _array((*self._prefix, *prompt, *completion, *self._suffix))
        learnt = np.ones(len(whole), dtype=np.bool_)
        learnt[: len(self._prefix) + len(prompt)] = self._spec.learn == "all"
        return Encoded(item.place, whole, learnt)

    def _conversation(self, item: Conversation) -> Encoded:
        if self._template is None:
            raise DataError(
                f"{item.place}: a conversation, but the tokenizer has no chat template; give one with chat_template "
                "(for prompts and completions without one: prompts: plain)"
            )
        if self._spec.learn == "all":
            token_ids = _array(self._tokenize([self._render(item.place, item.messages, False)])[0])
            return Encoded(item.place, token_ids, np.ones(len(token_ids), dtype=np.bool_))
        if marks_generation(self._template):
            return self._marked_conversation(item)
        try:
            text, spans = assistant_spans(
                lambda messages, prompt: self._render(item.place, messages, prompt),
                item.messages,
                learn_from=item.learn_from,
                end_marks=self._end_marks,
            )
        except UnreadableTemplateError as error:
            raise DataError(
                f"{item.place}: the chat template does not show what the assistant says ({error}); give a template "
                "with {% generation %} around it (chat_template), or learn every token (learn: all)"
            ) from error
        return Encoded(item.place, *self._tokenize_with_spans(text, spans))

    def _marked_conversation(self, item: Conversation) -> Encoded:
        answer = self._apply(
            item.place, item.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        learnt = np.asarray(answer["assistant_masks"], dtype=np.bool_)
        if item.learn_from:
            before = self._render(item.place, item.messages[: item.learn_from], False)
            learnt[: len(self._tokenize([before])[0])] = False
        return Encoded(item.place, _array(answer["input_ids"]), learnt)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _tokenize_with_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[TokenIds, Mask]:
        if not self._tokenizer.is_fast:
            return self._tokenize_piecewise(text, spans)
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        ends = np.asarray([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
        learnt = np.zeros(len(ends), dtype=np.bool_)
        # A token that reaches into a span from before it holds characters of the span: it is learnt.
        for start, end in spans:
            learnt |= (ends > start) & (ends <= end)
        return _array(encoded["input_ids"]), learnt

    def _tokenize_piecewise(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[TokenIds, Mask]:
        """A tokenizer that tells no offsets: each span and what lies between is tokenised for itself."""
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        parts = self._tokenize([text[start:end] for start, end in pairwise(edges)])
        token_ids = _array([token_id for part in parts for token_id in part])
        learnt = np.repeat(np.arange(len(parts)) % 2 == 1, [len(part) for part in parts])
        return token_ids, learnt

    def _render(self, place: Place, messages: Sequence[Message], prompt: bool) -> str:
        return str(self._apply(place, messages, tokenize=False, add_generation_prompt=prompt))

    def _apply(self, place: Place, messages: Sequence[Message], **arguments: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(list(messages), chat_template=self._template, **arguments)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise DataError(f"{place}: the chat template cannot render this conversation: {error}") from error


def chat_template(tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> str | None:
    """Return the chat template in use: the spec's file, or the tokenizer's own, or None.

    Raises:
        DataError: the file cannot be read.
    """
    if spec.chat_template is not None:
        try:
            return spec.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"chat_template {spec.chat_template} cannot be read: {error}") from error
    own: Any = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


def _special_tokens_around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer puts before and after a sequence by its own convention."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item.text) if isinstance(item, Text) else 0
        if len(batch) >= MAX_BATCH_ITEMS or characters >= MAX_BATCH_CHARACTERS or isinstance(item, Tokens):
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _array(token_ids: Sequence[int]) -> TokenIds:
    return np.asarray(token_ids, dtype=np.uint32)
