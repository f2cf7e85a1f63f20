"""On how many ids a teacher and a tokenizer agree: what training and capture check before they ask anything."""

from __future__ import annotations

import structlog

from stillhouse.request import TeacherDescription
from stillhouse.vocabulary import HasVocabulary, shared_vocabulary, tokenizer_tokens

_log = structlog.get_logger(__name__)


def paired_vocabulary(teacher: TeacherDescription, tokenizer: HasVocabulary | None) -> int:
    """Return N, the number of ids that a teacher shares with a tokenizer, at most the width of its logits.

    Where either side has no tokens to compare (a fixture, or shards of ids with no tokenizer), that width, which is
    said in the log.

    Args:
        teacher: as it describes itself, its tokens included.
        tokenizer: the one that the corpus is read with; None where there is none.

    Raises:
        VocabularyMismatchError: they cannot be paired; the message names the first id that differs.
    """
    if not teacher.tokens or tokenizer is None:
        _log.warning("vocabulary_not_compared", reason="teacher or student has no tokens: sizes alone decide")
        return teacher.vocabulary_size
    ours = tokenizer_tokens(tokenizer)
    return shared_vocabulary(teacher.tokens, ours, teacher_head_size=teacher.vocabulary_size)
