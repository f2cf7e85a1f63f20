"""Documents to ids and masks: special tokens by the tokenizer's convention, and only the assistant's tokens learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stillhouse.data.items import Conversation, Encoded, Item, Place, PromptCompletion, Text, Tokens
from stillhouse.data.shards import encode_shards
from stillhouse.data.spec import DataSpec, data_spec
from stillhouse.data.tokenize import DocumentTokenizer
from stillhouse.errors import DataError

PLACE = Place("corpus.jsonl", "line", 7)


def encode(tokenizer: Any, *items: Item, **settings: Any) -> list[Encoded]:
    spec = data_spec({"sources": ("x",), **settings})
    return list(DocumentTokenizer(tokenizer, spec, len(tokenizer)).encode(items))


def learnt_text(tokenizer: Any, encoded: Encoded) -> str:
    return str(tokenizer.decode(encoded.token_ids[encoded.learnt].tolist()))


def test_text_ends_in_the_end_of_sequence_token_and_is_learnt_whole(tokenizer: Any) -> None:
    (encoded,) = encode(tokenizer, Text(PLACE, "hello there"))
    assert tokenizer.decode(encoded.token_ids.tolist()) == "hello there<|endoftext|>"
    assert encoded.learnt.all()
    assert encoded.last
    (bare,) = encode(tokenizer, Text(PLACE, "hello there"), append_eos=False)
    assert bare.token_ids.tolist() == encoded.token_ids.tolist()[:-1]


def test_a_tokenizer_that_begins_sequences_with_bos_begins_documents_with_it(tokenizer: Any) -> None:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    bos = tokenizer.convert_tokens_to_ids("<s>")
    model = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    with_bos = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="<|endoftext|>")  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    (encoded,) = encode(with_bos, Text(PLACE, "hello"))
    assert encoded.token_ids[0] == bos
    assert encoded.token_ids[-1] == with_bos.eos_token_id
    assert encoded.token_ids.tolist().count(bos) == 1


def test_the_pieces_of_a_long_document_share_one_beginning_and_one_end(tokenizer: Any) -> None:
    pieces = [Text(PLACE, "hello\n", last=False), Text(PLACE, "there\n", first=False, last=False)]
    encoded = encode(tokenizer, *pieces, Text(PLACE, "still", first=False))
    assert [part.last for part in encoded] == [False, False, True]
    ids = np.concatenate([part.token_ids for part in encoded])
    assert ids.tolist().count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids.tolist()) == "hello\nthere\nstill<|endoftext|>"


def test_only_what_the_assistant_says_is_learnt(tokenizer: Any, chat: list[dict[str, str]]) -> None:
    (encoded,) = encode(tokenizer, Conversation(PLACE, tuple(chat)))
    assert encoded.token_ids.tolist() == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert learnt_text(tokenizer, encoded) == "the mash<|im_end|>is in the still<|im_end|>"


def test_characters_of_several_tokens_are_learnt_whole(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "ä"}, {"role": "assistant", "content": "Ünïcödé 🥃\nfin"}]
    (encoded,) = encode(tokenizer, Conversation(PLACE, tuple(chat)))
    assert learnt_text(tokenizer, encoded) == "Ünïcödé 🥃\nfin<|im_end|>"


def test_learn_all_learns_the_whole_conversation(tokenizer: Any, chat: list[dict[str, str]]) -> None:
    (encoded,) = encode(tokenizer, Conversation(PLACE, tuple(chat)), learn="all")
    assert encoded.learnt.all()


def test_a_template_with_generation_marks_gives_the_same_mask(
    tokenizer: Any, chat: list[dict[str, str]], tmp_path: Any
) -> None:
    marked = tmp_path / "marked.jinja"
    marked.write_text(
        "{% for m in messages %}{% if loop.first %}<|im_start|>system\nYou are a still.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n\n{% endfor %}"
    )
    for learn_from in (0, 2):
        conversation = Conversation(PLACE, tuple(chat), learn_from)
        (derived,), (asked,) = encode(tokenizer, conversation), encode(tokenizer, conversation, chat_template=marked)
        assert learnt_text(tokenizer, asked) == learnt_text(tokenizer, derived)
        assert learnt_text(tokenizer, asked).startswith("is in" if learn_from else "the mash")


def test_a_tokenizer_without_offsets_learns_the_same_text(tokenizer: Any, chat: list[dict[str, str]]) -> None:
    class Slow:
        """The same tokenizer, that cannot say where its tokens stood."""

        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __len__(self) -> int:
            return len(tokenizer)

        def __call__(self, text: Any, **arguments: Any) -> Any:
            assert "return_offsets_mapping" not in arguments
            return tokenizer(text, **arguments)

    (encoded,) = encode(Slow(), Conversation(PLACE, tuple(chat)))
    assert learnt_text(tokenizer, encoded) == "the mash<|im_end|>is in the still<|im_end|>"
    assert tokenizer.decode(encoded.token_ids.tolist()) == tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(
    ("learn", "expected"), [("assistant", " there<|endoftext|>"), ("all", "hello there<|endoftext|>")]
)
def test_a_plain_completion_is_learnt_and_its_prompt_is_not(tokenizer: Any, learn: str, expected: str) -> None:
    (encoded,) = encode(tokenizer, PromptCompletion(PLACE, "hello", " there"), learn=learn)
    assert tokenizer.decode(encoded.token_ids.tolist()) == "hello there<|endoftext|>"
    assert learnt_text(tokenizer, encoded) == expected


def test_order_is_kept_across_kinds_and_batches(tokenizer: Any, chat: list[dict[str, str]]) -> None:
    items: Sequence[Item] = [
        item
        for number in range(300)
        for item in (
            Text(Place(f"text {number}"), f"hello {number}"),
            Conversation(Place(f"chat {number}"), tuple(chat)),
        )
    ]
    encoded = encode(tokenizer, *items)
    assert [str(part.place) for part in encoded] == [str(item.place) for item in items]
    assert tokenizer.decode(encoded[400].token_ids.tolist()) == "hello 200<|endoftext|>"


def test_a_conversation_without_a_template_is_refused_with_its_place(
    tokenizer: Any, chat: list[dict[str, str]]
) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 7: .*no chat template.*chat_template"):
        encode(bare, Conversation(PLACE, tuple(chat)))


def test_what_a_template_raises_is_an_error_with_the_place(tokenizer: Any, tmp_path: Any) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"line 7: the chat template cannot render.*roles must alternate"):
        encode(tokenizer, Conversation(PLACE, ({"role": "user", "content": "x"},)), chat_template=template)
    template.write_text("{% for %}")
    with pytest.raises(DataError, match=r"line 7: the chat template cannot render"):
        encode(tokenizer, Conversation(PLACE, ({"role": "user", "content": "x"},)), chat_template=template)


def shard(ids: list[int], offset: int = 0, last: bool = True) -> Tokens:
    return Tokens(Place("shard.bin"), np.array(ids, dtype=np.uint32), offset, last)


def test_shards_are_cut_behind_each_boundary_and_at_their_end(tokenizer: Any) -> None:
    eos = tokenizer.eos_token_id
    encoded = encode(tokenizer, shard([5, 6, eos, 7], last=False), shard([8, eos, 9], offset=4))
    assert [part.token_ids.tolist() for part in encoded] == [[5, 6, eos], [7], [8, eos], [9]]
    assert [part.last for part in encoded] == [True, False, True, True]
    by_seven = encode(tokenizer, shard([5, 6, eos, 7, 8]), boundary_token_id=7)
    assert [part.token_ids.tolist() for part in by_seven] == [[5, 6, eos, 7], [8]]


def test_an_id_outside_the_vocabulary_is_named_with_its_place(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"shard\.bin, id 12 \(byte 48\): 300 is outside the tokenizer's vocabulary of 296"
    ):
        encode(tokenizer, shard([1, 2, 300, 4], offset=10))


def test_without_a_tokenizer_shards_are_read_and_nothing_else() -> None:
    assert [part.token_ids.tolist() for part in encode_shards([shard([1, 0, 70_000])])] == [[1, 0, 70_000]]
    with pytest.raises(DataError, match=r"line 7: only \.bin shards"):
        list(encode_shards([Text(PLACE, "hello")]))


def test_a_spec_refuses_what_has_no_effect_or_contradicts_itself() -> None:
    with pytest.raises(ValueError, match="two ways to hold data out"):
        DataSpec(sources=("x",), held_out_fraction=0.1, held_out_samples=3)
    with pytest.raises(ValueError, match="dataset_split has no effect without a hub dataset"):
        DataSpec(sources=("x",), dataset_split="train")
    with pytest.raises(ValueError, match=r"block_size: Input should be greater than or equal to 2; got 1"):
        data_spec({"sources": ["x"], "block_size": 1})
    with pytest.raises(ValueError, match="blok_size: Extra inputs are not permitted"):
        data_spec({"sources": ["x"], "blok_size": 64})
