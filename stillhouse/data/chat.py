"""Conversations to text, and which characters of it the assistant says.

Templates that mark the assistant's part with `{% generation %}` are asked through transformers (see `tokenize`). For
all others the part is derived here: what rendering one more message adds after the generation prompt is what the
assistant says in it. A template that renders an earlier message otherwise once another follows (some drop the
thoughts of earlier turns) is asked a second way: an assistant's content is exchanged for another, and what changes in
the rendered text is that content. The template's white space after the end of a turn is nobody's words.
Knows nothing of token ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from stillhouse.data.items import Message

Render = Callable[[Sequence[Message], bool], str]
"""(messages, whether to add the prompt that asks the assistant to speak) -> text."""

Span = tuple[int, int]

PROBE: Final = "\ue000probe\ue001"
"""A content that no message has: it begins and ends with characters of private use."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class UnreadableTemplateError(ValueError):
    """A template from whose text the assistant's part cannot be told."""


def marks_generation(template: str) -> bool:
    """Return whether a chat template marks the assistant's part itself."""
    return _GENERATION.search(template) is not None


def assistant_spans(
    render: Render, messages: Sequence[Message], *, learn_from: int = 0, end_marks: Sequence[str] = ()
) -> tuple[str, list[Span]]:
    """Return a conversation's text and the spans [start, end) of it that the assistant says, in order.

    A span runs from behind the generation prompt to the end of the turn's end mark.

    Args:
        render: the chat template.
        messages: the conversation.
        learn_from: only messages from this index on are considered.
        end_marks: the tokenizer's special tokens, of which one may end a turn.

    Raises:
        UnreadableTemplateError: the template hides where the assistant begins.
    """
    text = render(messages, False)
    spans: list[Span] = []
    for index in range(learn_from, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        span = _by_prefix(render, messages, index, text, end_marks)
        if span is None:
            span = _by_difference(render, messages, index, text, end_marks)
        if span is None or span[0] < (spans[-1][1] if spans else 0):
            raise UnreadableTemplateError(f"message {index} cannot be found again in the rendered conversation")
        spans.append(span)
    return text, spans


def _by_prefix(
    render: Render, messages: Sequence[Message], index: int, text: str, end_marks: Sequence[str]
) -> Span | None:
    """What rendering message `index` adds behind the generation prompt, if later messages leave it as it is."""
    if index == 0:
        return None  # Many templates cannot render no message, or begin otherwise then.
    before = render(messages[:index], True)
    after = text if index == len(messages) - 1 else render(messages[: index + 1], False)
    if not (text.startswith(after) and after.startswith(before)):
        return None
    said = after.rstrip()
    # White space behind the end mark belongs to the template: no model is ever asked to say it.
    return len(before), len(said) if len(said) > len(before) and said.endswith(tuple(end_marks)) else len(after)


def _by_difference(
    render: Render, messages: Sequence[Message], index: int, text: str, end_marks: Sequence[str]
) -> Span | None:
    """What changes when the content is another: from behind the generation prompt before it to the end mark after."""
    if not isinstance(messages[index].get("content"), str):
        return None
    other = render([*messages[:index], {**messages[index], "content": PROBE}, *messages[index + 1 :]], False)
    if other.count(PROBE) != 1:
        return None
    # The probe begins and ends as no content does, so the texts part at the latest where the content begins.
    start = _common_prefix_length(text, other)
    end = len(text) - _common_prefix_length(text[start:][::-1], other[start:][::-1])
    mark_at = end + len(text[end:]) - len(text[end:].lstrip(" "))
    for mark in end_marks:
        if text.startswith(mark, mark_at):
            end = mark_at + len(mark)
            break
    prompted = render(messages, True)
    prompt = prompted[len(text) :] if prompted.startswith(text) else ""
    found = text.rfind(prompt, 0, start) if prompt else -1
    return (found + len(prompt) if found >= 0 else start), end


def _common_prefix_length(one: str, other: str) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )
