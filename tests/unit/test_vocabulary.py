"""Which tokenizers can be paired, and on how many ids."""

from __future__ import annotations

import pytest

from stillhouse.errors import DataError, VocabularyMismatchError
from stillhouse.fingerprint import tokens_fingerprint
from stillhouse.vocabulary import HOLE, check_token_ids, shared_vocabulary, tokenizer_tokens

TOKENS = ("a", "b", "c", "d")


class Vocabulary:
    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids

    def get_vocab(self) -> dict[str, int]:
        return self.ids


def test_vocab_001_equal_tokenizers_share_every_id() -> None:
    assert shared_vocabulary(TOKENS, TOKENS) == 4


def test_vocab_002_heads_padded_to_different_widths_are_cut_to_the_tokenizers() -> None:
    tokens = tuple(f"t{index}" for index in range(1500))
    assert shared_vocabulary(tokens, tokens, teacher_head_size=1536, student_head_size=2048) == 1500


@pytest.mark.parametrize("swap", [False, True])
def test_vocab_003_the_shorter_of_two_agreeing_tokenizers_sets_n(swap: bool) -> None:
    longer = (*TOKENS, "<added>")
    assert shared_vocabulary(*((longer, TOKENS) if swap else (TOKENS, longer))) == 4


def test_vocab_004_the_first_id_that_differs_is_named_with_both_tokens() -> None:
    with pytest.raises(
        VocabularyMismatchError, match=r"token id 2 is 'c' to the teacher and 'X' to the student.*4 and 3"
    ):
        shared_vocabulary(TOKENS, ("a", "b", "X"))


def test_vocab_005_data_with_an_id_at_or_above_n_is_refused() -> None:
    check_token_ids(3, 4)
    with pytest.raises(DataError, match=r"shards/0\.bin holds token id 4.*below 4"):
        check_token_ids(4, 4, source="shards/0.bin")


def test_vocab_006_a_hole_agrees_with_the_same_hole_and_with_no_token() -> None:
    holed = tokenizer_tokens(Vocabulary({"a": 0, "c": 2}))
    assert holed == ("a", HOLE.format(1), "c")
    assert shared_vocabulary(holed, holed) == 3
    with pytest.raises(VocabularyMismatchError, match="token id 1"):
        shared_vocabulary(("a", "b", "c"), holed)


def test_a_head_narrower_than_its_tokenizer_cuts_n() -> None:
    assert shared_vocabulary(TOKENS, TOKENS, student_head_size=3) == 3


def test_an_empty_tokenizer_is_refused_on_either_side() -> None:
    with pytest.raises(VocabularyMismatchError, match="teacher"):
        shared_vocabulary((), TOKENS)
    with pytest.raises(VocabularyMismatchError, match="student"):
        shared_vocabulary(TOKENS, ())
    with pytest.raises(VocabularyMismatchError, match="no tokens"):
        tokenizer_tokens(Vocabulary({}))


def test_tokens_stand_by_id_whatever_the_order_of_the_mapping() -> None:
    one = tokenizer_tokens(Vocabulary({"b": 1, "a": 0, "twin of b": 1}))
    other = tokenizer_tokens(Vocabulary({"twin of b": 1, "a": 0, "b": 1}))
    assert one == other == ("a", "b")
    assert tokens_fingerprint(one) == tokens_fingerprint(other)
