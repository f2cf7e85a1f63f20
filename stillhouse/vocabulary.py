"""Do two tokenizers agree, and on how many ids?

Teacher and student can be paired iff their tokenizers give the same token to each of the first N ids, N being the
shorter tokenizer's length; both sides are then cut to N before any softmax. Heads wider than their tokenizer
(padded to a round number) say nothing here: only tokens count. Knows nothing of models, requests or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stillhouse.errors import DataError, VocabularyMismatchError

HOLE = "\N{REPLACEMENT CHARACTER}unused {}"
"""The name of an id that no token has; the replacement character keeps it apart from every real token."""


class HasVocabulary(Protocol):
    """What is asked of a tokenizer here; those of transformers have it."""

    def get_vocab(self) -> Mapping[str, int]:
        """Return the id of each token, added tokens included."""
        ...


def tokenizer_tokens(tokenizer: HasVocabulary) -> tuple[str, ...]:
    """Return a tokenizer's tokens in the order of their ids, added tokens included.

    An id below the highest that no token has is named by `HOLE`, the same in every tokenizer. `stillhouse.fingerprint.
    tokens_fingerprint` of the result is the tokenizer's fingerprint wherever one is compared.

    Raises:
        VocabularyMismatchError: the tokenizer has no token at all.
    """
    ids = tokenizer.get_vocab()
    if not ids:
        raise VocabularyMismatchError("the tokenizer has no tokens; is its folder complete?")
    tokens = [""] * (max(ids.values()) + 1)
    # Two spellings of one id (some added tokens): the first in the order of the alphabet, so that all agree on one.
    for token in sorted(ids, reverse=True):
        tokens[ids[token]] = token
    taken = set(ids.values())
    for index in range(len(tokens)):
        if index not in taken:
            tokens[index] = HOLE.format(index)
    return tuple(tokens)


@dataclass(frozen=True, slots=True)
class Difference:
    """An id to which two tokenizers give different tokens."""

    token_id: int
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class VocabularyComparison:
    """What two tokenizers have in common.

    `num_shared` is N, 0 where they cannot be paired; of the `num_compared` ids that both have, `num_different` stand
    for different tokens.
    """

    num_shared: int
    num_compared: int
    num_different: int
    first_difference: Difference | None

    @property
    def can_be_paired(self) -> bool:
        """Whether every id that both have stands for the same token."""
        return self.first_difference is None


def compare_vocabularies(
    a_tokens: Sequence[str], b_tokens: Sequence[str], a_head_size: int | None = None, b_head_size: int | None = None
) -> VocabularyComparison:
    """Compare two tokenizers id by id; arguments as in `shared_vocabulary`, in either order."""
    size = min(len(a_tokens), len(b_tokens))
    pairs = enumerate(zip(a_tokens[:size], b_tokens[:size], strict=True))
    different = [Difference(index, a, b) for index, (a, b) in pairs if a != b]
    shared = 0 if different else min(size, a_head_size or size, b_head_size or size)
    return VocabularyComparison(shared, size, len(different), different[0] if different else None)


def shared_vocabulary(
    teacher_tokens: Sequence[str],
    student_tokens: Sequence[str],
    *,
    teacher_head_size: int | None = None,
    student_head_size: int | None = None,
) -> int:
    """Return N, the number of ids on which two tokenizers agree, if they can be paired.

    N is the shorter tokenizer's length. A head (the number of logits that a model gives) wider than that is padding
    and is cut; a head narrower than its tokenizer cannot predict the last tokens, so N is cut to it.

    Args:
        teacher_tokens: tokens by id, as `tokenizer_tokens` gives them.
        student_tokens: the same of the student.
        teacher_head_size: width of the teacher's logits, where it is known.
        student_head_size: the same of the student.

    Raises:
        VocabularyMismatchError: the first id whose tokens differ, and both tokens; or a side with no token at all.
    """
    for side, tokens in (("teacher", teacher_tokens), ("student", student_tokens)):
        if not tokens:
            raise VocabularyMismatchError(f"the {side}'s tokenizer has no tokens; was it loaded?")
    found = compare_vocabularies(teacher_tokens, student_tokens, teacher_head_size, student_head_size)
    if found.first_difference is not None:
        first = found.first_difference
        raise VocabularyMismatchError(
            f"teacher and student cannot be paired: token id {first.token_id} is {first.a!r} to the teacher and "
            f"{first.b!r} to the student (vocabulary sizes {len(teacher_tokens)} and {len(student_tokens)}; "
            f"{found.num_different} ids differ); take a student with the teacher's tokenizer"
        )
    return found.num_shared


def check_token_ids(max_token_id: int, vocabulary_size: int, *, source: str = "the data") -> None:
    """Check that every id of the data is below N.

    Args:
        max_token_id: the highest id in the data.
        vocabulary_size: N, as `shared_vocabulary` gives it.
        source: what holds the ids, for the message.

    Raises:
        DataError: it is not; the message names the id and N.
    """
    if max_token_id >= vocabulary_size:
        raise DataError(
            f"{source} holds token id {max_token_id}, but teacher and student share only the ids below "
            f"{vocabulary_size}; prepare the data with the tokenizer that both have"
        )
