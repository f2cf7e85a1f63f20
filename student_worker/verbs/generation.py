"""`stillhouse generate`: to hear what a model says, a student's export above all.

Nothing heavy is imported until the verb runs. Knows nothing of training.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from stillhouse.errors import ConfigurationError

MAX_PROMPT_BYTES = 16 * 2**20
"""What is read from standard input at most: far more than any model's context."""


def generate(
    model: Annotated[
        str, typer.Argument(help="Folder (a run's, an export, adapters, any of transformers), hub name or .gguf file.")
    ],
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="What to say to it; may be given again. -: standard input.")
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to say at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token each time; above it they are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the draws, the same for each prompt.")] = 0,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Ask as in a chat; by default where there is a template.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the tokenizer; by default the model's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each prompt.")] = False,
) -> None:
    """Hear a model: print what it says to each prompt, as it says it."""
    if not math.isfinite(temperature):
        raise ConfigurationError(f"--temperature {temperature}: give a finite number, 0 for the likeliest tokens")
    prompts = _read(prompt)
    from stillhouse.models import pick_device, silence_transformers
    from student_worker.verbs.speaker import Speaker

    silence_transformers()
    speaker = Speaker(model, tokenizer=tokenizer, device=str(pick_device(device)), chat=chat)
    for index, text in enumerate(prompts):
        on_text = None if as_json else _write
        said = speaker.say(text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, on_text=on_text)
        if as_json:
            _write(json.dumps(asdict(said), ensure_ascii=False) + "\n")
        else:
            _write("\n\n" if index + 1 < len(prompts) else "\n")


def _read(prompts: list[str]) -> list[str]:
    """Return the prompts; `-` is what standard input holds."""
    if prompts.count("-") > 1:
        raise ConfigurationError("--prompt - is given twice, and there is one standard input; give it once")
    return [_standard_input() if prompt == "-" else prompt for prompt in prompts]


def _standard_input() -> str:
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise ConfigurationError(f"--prompt -: standard input holds more than {MAX_PROMPT_BYTES} bytes; give less")
    try:
        return data.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--prompt -: standard input is no UTF-8: {error}") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
