"""A teacher that is asked again must say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import StoreError
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from stillhouse.store.verify import verify
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, make_store

Corpus = tuple[Prepared, DataSpec]


class Changed(RandomTeacher):
    """Says that it is the other, and answers otherwise where a sample begins with an even id."""

    def answer(self, request: LogitsRequest) -> Answer:
        mine = super().answer(request)
        other = RandomTeacher(VOCABULARY, seed=1)._payload
        payloads = tuple(
            other(sequence, request) if sequence.token_ids[0] % 2 == 0 else payload
            for sequence, payload in zip(request.sequences, mine.payloads, strict=True)
        )
        return Answer(payloads, mine.fingerprint)


@pytest.mark.parametrize("encoding", [Sampled(8), TopK(4), Dense(), Hidden(), Candidates((1, 2))], ids=repr)
def test_the_same_teacher_says_the_same(corpus: Corpus, tmp_path: Path, encoding: Encoding) -> None:
    teacher = RandomTeacher(VOCABULARY)
    make_store(tmp_path / "store", corpus, encoding, teacher=teacher, temperature=1.5, vocabulary_size=40)
    found = verify(tmp_path / "store", teacher=teacher, num_samples=20)
    assert (found.reasked, found.faults, found.samples, found.tokens) == (20, [], 38, 600)


def test_one_that_answers_otherwise_is_found_by_sample(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus, teacher=RandomTeacher(VOCABULARY))
    found = verify(tmp_path / "store", teacher=Changed(VOCABULARY), num_samples=100)
    assert found.reasked == 38
    odd = [s for part in (corpus[0].train, corpus[0].held_out) if part for s in part if s.token_ids[0] % 2 == 0]
    assert len(found.faults) == len(odd) > 0
    assert "the teacher answers otherwise than is stored about sample" in found.faults[0]


def test_another_teacher_is_refused_with_both_named(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus, teacher=RandomTeacher(VOCABULARY))
    with pytest.raises(StoreError, match=r"with the fingerprint random 0, but this teacher is .* with random 1"):
        verify(tmp_path / "store", teacher=RandomTeacher(VOCABULARY, seed=1))
