"""A store in the teacher's place: its very payloads, never those of another row, and who is asked for the rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from stillhouse.asking import Asking
from stillhouse.codec import encode_payload
from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError, EncodingNotOfferedError, FingerprintMismatchError, StoreError
from stillhouse.providers import Answer
from stillhouse.request import Explicit, LogitsRequest
from stillhouse.store import open_store
from stillhouse.store.teacher import StoreFirst, StoreTeacher, check_same_teacher
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, make_store, small_corpus

Corpus = tuple[Prepared, DataSpec]

ENCODINGS = [Sampled(8), TopK(5), Hidden("bfloat16"), Dense("float16"), Candidates((3, 17, 40))]


class Watched(RandomTeacher):
    """The same teacher, which remembers what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(VOCABULARY, seed)
        self.requests: list[LogitsRequest] = []

    def answer(self, request: LogitsRequest) -> Answer:
        self.requests.append(request)
        return super().answer(request)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def store_of(folder: Path, corpus: Corpus, encoding: Encoding, **values: Any) -> StoreTeacher:
    make_store(folder, corpus, encoding, teacher=RandomTeacher(VOCABULARY), **values)
    return StoreTeacher(open_store(folder, allow_partial=True))


def request(corpus: Corpus, encoding: Encoding, ids: list[int], temperature: float = 1.0, n: int = 50) -> LogitsRequest:
    train = corpus[0].train
    asking = Asking(encoding, temperature, n, "random 0")
    return asking.request([train[i] for i in ids], [("train", i) for i in ids])


def wire(answer: Answer) -> list[bytes]:
    return [bytes(encode_payload(payload)) for payload in answer.payloads]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_its_answers_are_the_teachers_to_the_byte(
    corpus: Corpus, tmp_path: Path, encoding: Encoding, temperature: float
) -> None:
    stored = store_of(tmp_path / "store", corpus, encoding, temperature=temperature)
    asked = request(corpus, encoding, [7, 0, 32, 9, 8], temperature)
    answer = stored.answer(asked)
    assert wire(answer) == wire(RandomTeacher(VOCABULARY).answer(asked))
    assert (answer.store_hits, answer.fingerprint) == (5, "random 0")
    if isinstance(encoding, Hidden):
        assert torch.equal(stored.output_head().weight, RandomTeacher(VOCABULARY).output_head().weight)
    else:
        with pytest.raises(EncodingNotOfferedError, match="no output head"):
            stored.output_head()


@pytest.mark.parametrize("encoding", [TopK(5), Candidates((3, 17, 40)), Hidden("float32"), Dense()], ids=repr)
def test_what_holds_at_another_temperature_is_given_there_as_the_teacher_gives_it(
    corpus: Corpus, tmp_path: Path, encoding: Encoding
) -> None:
    stored = store_of(tmp_path / "store", corpus, encoding, temperature=2.0)
    asked = request(corpus, encoding, [1, 2])
    assert wire(stored.answer(asked)) == wire(RandomTeacher(VOCABULARY).answer(asked))


@pytest.mark.parametrize("encoding", [Hidden("float32"), Dense()], ids=repr)
def test_what_holds_for_fewer_ids_is_cut_to_them(corpus: Corpus, tmp_path: Path, encoding: Encoding) -> None:
    stored = store_of(tmp_path / "store", corpus, encoding)
    asked = request(corpus, encoding, [1, 2], n=40)
    assert wire(stored.answer(asked)) == wire(RandomTeacher(VOCABULARY).answer(asked))


@pytest.mark.parametrize(
    ("encoding", "temperature", "n", "named"),
    [
        (TopK(6), 1.0, 50, r"top_k:6:f16 is asked for.*holds sampled:8:0"),
        (Sampled(8, 1), 1.0, 50, r"sampled:8:1 is asked for.*sampled:8:0"),
        (Sampled(8), 2.0, 50, r"temperature 2 is asked for.*at 1"),
        (Sampled(8), 1.0, 49, r"49 ids is asked for.*cover 50"),
    ],
)
def test_another_form_is_refused_with_both_named(
    corpus: Corpus, tmp_path: Path, encoding: Encoding, temperature: float, n: int, named: str
) -> None:
    stored = store_of(tmp_path / "store", corpus, Sampled(8))
    with pytest.raises(StoreError, match=named):
        stored.answer(request(corpus, encoding, [1], temperature, n))


def test_a_row_about_something_else_never_answers(corpus: Corpus, tmp_path: Path) -> None:
    stored = store_of(tmp_path / "store", corpus, Sampled(8))
    (sequence,) = request(corpus, Sampled(8), [4]).sequences
    ids = (*sequence.token_ids[:-1], (sequence.token_ids[-1] + 1) % VOCABULARY)
    indices = tuple(sequence.position_indices())
    others = {
        "no place": replace(sequence, sample_index=None),
        "another row": replace(sequence, sample_index=("train", 5)),
        "another part": replace(sequence, sample_index=("held_out", 4)),
        "no such part": replace(sequence, sample_index=("dev", 4)),
        "no such row": replace(sequence, sample_index=("train", 33)),
        "a row counted from the end": replace(sequence, sample_index=("train", -29)),
        "other ids": replace(sequence, token_ids=ids),
        "other segments": replace(sequence, segment_lengths=(1, 15)),
        "other positions": replace(sequence, positions=Explicit(indices[1:])),
    }
    asked = request(corpus, Sampled(8), [4])
    for name, other in others.items():
        with pytest.raises(StoreError, match=r"holds no answer to sequences\[0\]"):
            pytest.fail(f"{name}: {stored.answer(replace(asked, sequences=(other,)))}")
    assert len(stored.answer(asked).payloads) == 1
    with pytest.raises(FingerprintMismatchError, match=r"random 0.*random 1"):
        stored.answer(replace(asked, expected_fingerprint="random 1"))


def test_the_service_is_asked_for_what_is_missing_and_no_more(corpus: Corpus, tmp_path: Path) -> None:
    share = store_of(tmp_path / "store", corpus, Sampled(8), share=(0, 2))
    service = Watched()
    first = StoreFirst(share, service)
    asked = request(corpus, Sampled(8), [30, 1, 25, 2, 29])
    answer = first.answer(asked)
    assert wire(answer) == wire(RandomTeacher(VOCABULARY).answer(asked))
    assert answer.store_hits == 2
    assert [s.sample_index for s in service.requests[0].sequences] == [("train", 30), ("train", 25), ("train", 29)]
    assert service.requests[0].expected_fingerprint == "random 0"
    assert first.answer(request(corpus, Sampled(8), [1, 2])).store_hits == 2
    assert len(service.requests) == 1, "nothing was missing"
    # Another form: the store has nothing to say.
    assert first.answer(request(corpus, Hidden(), [1, 2])).store_hits == 0
    assert first.output_head().hidden_size == 12
    assert first.describe() == service.describe()


def test_the_service_stands_in_for_a_damaged_shard_which_is_told_once(corpus: Corpus, tmp_path: Path) -> None:
    stored = store_of(tmp_path / "store", corpus, Sampled(8))
    shard = tmp_path / "store" / "train" / "000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    asked = request(corpus, Sampled(8), [1, 4, 5, 9])
    with pytest.raises(StoreError, match=r"train/000001\.parquet"):
        stored.answer(asked)
    service = Watched()
    with structlog.testing.capture_logs() as logs:
        first = StoreFirst(stored, service)
        answers = [first.answer(asked) for _ in range(2)]
    assert [wire(answer) for answer in answers] == [wire(RandomTeacher(VOCABULARY).answer(asked))] * 2
    assert [answer.store_hits for answer in answers] == [2, 2]
    assert [log["event"] for log in logs] == ["store_is_damaged"]


def test_many_threads_get_the_same_answers(corpus: Corpus, tmp_path: Path) -> None:
    stored = store_of(tmp_path / "store", corpus, TopK(5))
    expected = wire(RandomTeacher(VOCABULARY).answer(request(corpus, TopK(5), list(range(33)))))
    orders = [[(start + 7 * i) % 33 for i in range(33)] for start in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda ids: wire(stored.answer(request(corpus, TopK(5), ids))), orders)
        for ids, answer in zip(orders, answers, strict=True):
            assert answer == [expected[i] for i in ids]


def test_another_teacher_beside_the_store_is_refused_with_both_named(corpus: Corpus, tmp_path: Path) -> None:
    stored = store_of(tmp_path / "store", corpus, Sampled(8))
    check_same_teacher(stored, RandomTeacher(VOCABULARY).describe())
    with pytest.raises(ConfigurationError, match=r"fingerprint is random 0 .*is random 1"):
        check_same_teacher(stored, RandomTeacher(VOCABULARY, seed=1).describe())
