"""Tokens as people read them, from their list alone."""

from __future__ import annotations

from stillhouse.token_texts import TokenTexts
from stillhouse.vocabulary import HOLE


def test_byte_level_tokens_read_as_their_text() -> None:
    tokens = TokenTexts(["Ġthe", "ĊĊ", "Ã©", "ðŁ", "<|im_start|>", "日本"])
    assert tokens.texts(range(6)) == [" the", "\n\n", "é", "\N{REPLACEMENT CHARACTER}", "<|im_start|>", "日本"]
    assert tokens.own([0, 4]) == ["Ġthe", "<|im_start|>"]


def test_sentencepiece_tokens_read_as_their_text() -> None:
    tokens = TokenTexts(["▁the", "<0x0A>", "ing", "<0xF0>"])
    assert tokens.texts(range(4)) == [" the", "\n", "ing", "\N{REPLACEMENT CHARACTER}"]


def test_other_tokens_read_as_they_are() -> None:
    assert TokenTexts(["##ing", "17"]).texts([0, 1]) == ["##ing", "17"]


def test_an_id_without_a_token_has_none() -> None:
    tokens = TokenTexts(["a", HOLE.format(1)])
    assert tokens.own([0, 1, 2, 4_000_000_000]) == tokens.texts([0, 1, 2, 4_000_000_000]) == ["a", None, None, None]


def test_without_a_tokenizer_no_id_has_a_text() -> None:
    assert TokenTexts(()).texts([0, 1]) == [None, None]


def test_a_character_of_several_tokens_is_whole_in_a_text() -> None:
    assert TokenTexts(["Ġt", "Ã", "©"]).text([0, 1, 2]) == " té"
    assert TokenTexts(["▁t", "<0xC3>", "<0xA9>"]).text([0, 1, 2, 9]) == " té"


def test_the_letters_are_those_of_tokenizers() -> None:
    from tokenizers import decoders

    decode = decoders.ByteLevel().decode
    for word in ("Ġhello", "Ċ", "Ã¼", "Âł", "Ġ!"):
        assert TokenTexts(["Ġ", word]).texts([1]) == [decode([word])]
