"""A model that speaks: one prompt in, what it says out, piece by piece. Knows nothing of command lines or training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stillhouse.errors import ConfigurationError
from stillhouse.models import has_tokenizer, load_tokenizer, resolve_model
from student_worker.verbs.open_model import open_model


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said to one prompt. `finish` is stop where it ended by itself, length where it was cut."""

    prompt: str
    text: str
    prompt_tokens: int
    tokens: int
    finish: str
    seconds: float


class Speaker:
    """A model and its tokenizer, ready to be asked.

    Args:
        name: as the verb takes it.
        tokenizer: of another folder; None is the model's own.
        device: as torch names it.
        chat: whether prompts go through the chat template; None is where there is one.

    Raises:
        ConfigurationError: one of them cannot be found or loaded, or there is no chat template.
    """

    def __init__(
        self, name: str, *, tokenizer: str | None = None, device: str = "cpu", chat: bool | None = None
    ) -> None:
        self._model, folders = open_model(name, device=device)
        beside = next((folder for folder in folders if has_tokenizer(folder)), folders[0])
        self._tokenizer: Any = load_tokenizer(resolve_model(tokenizer) if tokenizer else beside)
        has_template = bool(self._tokenizer.chat_template)
        if chat and not has_template:
            raise ConfigurationError(f"--chat: the tokenizer of {name!r} has no chat template; give --no-chat")
        self._chat = has_template if chat is None else chat

    def say(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Said:
        """Return what the model says to a prompt; `on_text` is told each piece of it as it comes.

        Raises:
            ConfigurationError: a prompt of no token, or of more than the model can read.
        """
        ids = self._encode(prompt)
        room = self._room(len(ids))
        began = time.monotonic()
        torch.manual_seed(seed)
        with torch.no_grad():
            output = self._model.generate(
                torch.tensor([ids], device=self._model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._model.device),
                generation_config=self._settings(min(max_new_tokens, room), temperature),
                streamer=_streamer(self._tokenizer, on_text) if on_text else None,
            )
        new = output[0, len(ids) :].tolist()
        ended = bool(new) and new[-1] in self._ends()
        return Said(
            prompt=prompt,
            text=self._tokenizer.decode(new, skip_special_tokens=True),
            prompt_tokens=len(ids),
            tokens=len(new),
            finish="stop" if ended else "length",
            seconds=round(time.monotonic() - began, 3),
        )

    def _encode(self, prompt: str) -> list[int]:
        tokenizer = self._tokenizer
        if self._chat:
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids: list[int] = tokenizer(prompt, add_special_tokens=not self._chat)["input_ids"]
        if not ids and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id]
        if not ids:
            raise ConfigurationError("--prompt is empty, and this tokenizer has no token to begin with; give some text")
        size = int(self._model.get_input_embeddings().weight.shape[0])
        if max(ids) >= size:
            raise ConfigurationError(
                f"the prompt has token id {max(ids)}, but the model knows ids below {size} only; "
                "give its own --tokenizer"
            )
        return ids

    def _room(self, num_tokens: int) -> int:
        """Return how many tokens fit behind a prompt."""
        limit = getattr(self._model.config, "max_position_embeddings", None) or sys.maxsize
        if num_tokens >= limit:
            raise ConfigurationError(
                f"--prompt has {num_tokens} tokens, and the model reads {limit} at most; shorten it"
            )
        return int(limit - num_tokens)

    def _ends(self) -> set[int]:
        given = self._model.generation_config.eos_token_id
        ends = given if isinstance(given, list) else [given]
        return {end for end in (*ends, self._tokenizer.eos_token_id) if end is not None}

    def _settings(self, max_new_tokens: int, temperature: float) -> Any:
        from transformers import GenerationConfig

        ends = sorted(self._ends())
        draws = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        return GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            **{"do_sample": False, **draws},
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Told(TextStreamer):
        """Tells each finished piece of text."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            del stream_end
            on_text(text)

    return Told(tokenizer, skip_prompt=True, skip_special_tokens=True)
