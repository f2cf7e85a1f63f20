"""What a writer was given is what a reader gives back, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillhouse.codec import encode_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.fixtures import FixtureTeacher
from stillhouse.request import LogitsRequest
from stillhouse.store import asked_sequence, open_store
from tests.unit.store.small_store import VOCABULARY, folder_bytes, make_store, small_corpus

ENCODINGS = [
    Dense("float32"),
    Dense("float16"),
    Dense("bfloat16"),
    Hidden("bfloat16"),
    Hidden("float32"),
    TopK(4),
    TopK(4, "float32"),
    Sampled(8),
    Candidates((3, 5, 17)),
    Candidates((3, 5, 17), "float16"),
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_store_gives_back_samples_and_answers(tmp_path: Path, encoding: Encoding, temperature: float) -> None:
    corpus = small_corpus(tmp_path)
    make_store(tmp_path / "store", corpus, encoding, temperature=temperature)
    teacher = FixtureTeacher(VOCABULARY)
    store = open_store(tmp_path / "store")
    assert store.held_out is not None
    for part, dataset in ((store.train, corpus[0].train), (store.held_out, corpus[0].held_out)):
        assert dataset is not None
        assert (len(part), part.fingerprint) == (len(dataset), dataset.fingerprint)
        assert np.array_equal(part.sample_lengths(), dataset.sample_lengths())
        for index, expected in enumerate(dataset):
            found = part[index]
            for name in ("token_ids", "labels", "mask"):
                assert np.array_equal(getattr(found, name), getattr(expected, name))
                assert getattr(found, name).dtype == getattr(expected, name).dtype
            assert found.segment_lengths == expected.segment_lengths
            request = LogitsRequest((asked_sequence(expected),), encoding, temperature=temperature)
            assert encode_payload(found.payload) == encode_payload(teacher.answer(request).payloads[0])


def test_the_same_answers_give_the_same_files(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    for name in ("one", "other"):
        make_store(tmp_path / name, corpus)
    one = folder_bytes(tmp_path / "one")
    assert one == folder_bytes(tmp_path / "other")
    assert set(one) >= {"manifest.json", "tokens.parquet", "train/000000.parquet", "held_out/000000.parquet"}
    assert not any(name.startswith(("partial", "capture")) for name in one)
