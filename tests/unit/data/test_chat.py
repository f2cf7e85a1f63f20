"""Which characters of a rendered conversation the assistant says, for templates of several families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import pytest

from stillhouse.data.chat import Render, UnreadableTemplateError, assistant_spans, marks_generation

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INSTRUCT = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
# Drops the thoughts of every turn but the last, and gives the last one empty thoughts where it has none.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.last %}<think>\n{{ parts[0].replace('<think>', '') if parts | length > 1 else '' }}\n</think>\n\n"
    "{% endif %}{{ parts[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
END_MARKS = ("</s>", "<|im_end|>", "<|im_start|>")


def renderer(template: str) -> Render:
    # Text for a model, not for a browser: nothing is to be escaped.
    compiled = jinja2.Environment(autoescape=False).from_string(template)  # noqa: S701

    def render(messages: Sequence[Any], prompt: bool) -> str:
        return compiled.render(messages=messages, add_generation_prompt=prompt)

    return render


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[turn % 2], "content": content} for turn, content in enumerate(contents)]


def said(template: str, messages: list[dict[str, str]], learn_from: int = 0) -> list[str]:
    text, spans = assistant_spans(renderer(template), messages, learn_from=learn_from, end_marks=END_MARKS)
    assert text == renderer(template)(messages, False)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["one<|im_end|>", "two<|im_end|>"]),
        (ZEPHYR, ["one</s>", "two</s>"]),
        (INSTRUCT, [" one </s>", " two </s>"]),
        (THINKING, ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]),
        (PLAIN, ["one\n", "two\n"]),
    ],
    ids=["chatml", "zephyr", "instruct", "thinking", "plain"],
)
def test_what_is_said_ends_with_the_end_mark_and_never_holds_the_header(template: str, expected: list[str]) -> None:
    assert said(template, talk("hi", "one", "and", "two")) == expected


def test_thoughts_of_the_last_turn_are_learnt_and_those_dropped_are_not_looked_for() -> None:
    assert said(THINKING, talk("a", "<think>why</think>one", "b", "<think>so</think>two")) == [
        "one<|im_end|>",
        "<think>\nso\n</think>\n\ntwo<|im_end|>",
    ]


def test_the_same_words_said_by_both_are_told_apart() -> None:
    messages = talk("one", "one", "one", "one")
    text, spans = assistant_spans(renderer(CHATML), messages, end_marks=END_MARKS)
    headers = [text[:start].rsplit("<|im_start|>", 1)[1] for start, _ in spans]
    assert headers == ["assistant\n", "assistant\n"]
    assert len(spans) == 2


def test_an_assistant_that_speaks_first_is_found() -> None:
    messages = [{"role": "assistant", "content": "welcome"}, {"role": "user", "content": "thanks"}]
    assert said(CHATML, messages) == ["welcome<|im_end|>"]


def test_empty_and_trimmed_contents_are_found() -> None:
    assert said(ZEPHYR, talk("hi", "  spaced  ", "so", "")) == ["spaced</s>", "</s>"]


def test_messages_before_learn_from_are_left_alone() -> None:
    assert said(CHATML, talk("a", "one", "b", "two"), learn_from=2) == ["two<|im_end|>"]


def test_a_template_that_hides_the_assistant_is_refused() -> None:
    with pytest.raises(UnreadableTemplateError, match="message 1"):
        said("{% for m in messages | reverse %}{{ m.content | upper }};{% endfor %}", talk("a", "b", "c"))


def test_generation_marks_are_recognised_however_they_are_written() -> None:
    assert marks_generation("{% generation %}x{% endgeneration %}")
    assert marks_generation("{%- generation -%}x{%- endgeneration -%}")
    assert not marks_generation(CHATML)
