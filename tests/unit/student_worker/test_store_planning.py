"""What a run finds out about a store before it begins: what fits is taken, what differs is refused with both named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError, StoreError
from stillhouse.request import TeacherDescription
from stillhouse.store import open_store
from stillhouse.store.teacher import StoreTeacher
from student_worker.evaluation.evaluate import Evaluator
from student_worker.planning.checked import Checked, check_run
from student_worker.planning.plan import make_plan
from student_worker.planning.stored import check_tokenizer
from student_worker.recipe.schema import Recipe
from student_worker.students.fixture import FixtureTrainee
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import BLOCK_SIZE, VOCABULARY, make_store, small_corpus

Corpus = tuple[Prepared, DataSpec]
Check = Callable[..., Checked]

NARROWER: dict[str, Any] = {
    "store": {"teacher": RandomTeacher(60)},
    "student": {"kind": "fixture", "vocabulary_size": 55},
}
"""A student that knows fewer ids than its teacher, and all of the corpus'."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def check(corpus: Corpus, tmp_path: Path) -> Check:
    """Checks a run of keys from a store of an encoding; with `data`, of named sources beside it."""

    def run(
        held: Encoding,
        /,
        *,
        data: dict[str, Any] | None = None,
        store: dict[str, Any] | None = None,
        live: TeacherDescription | None = None,
        **keys: Any,
    ) -> Checked:
        folder = tmp_path / "store"
        made = {"teacher": RandomTeacher(VOCABULARY), **(store or {})}
        make_store(folder, made.pop("corpus", corpus), held, **made)
        stored = StoreTeacher(open_store(folder, allow_partial=True))
        values = {
            "store": str(folder),
            "output_dir": str(tmp_path / "run"),
            "student": {"kind": "fixture"},
            "global_batch_size": 4,
            **({} if data is None else {"data": data}),
            **({} if live is None else {"teacher": "127.0.0.1:8001"}),
            **keys,
        }
        return check_run(Recipe.model_validate(values), live or stored.describe(), stored)

    return run


def sources(corpus: Corpus, **changed: Any) -> dict[str, Any]:
    """The corpus as a recipe names it."""
    return {**corpus[1].model_dump(mode="json", exclude_defaults=True), **changed}


@pytest.mark.parametrize("encoding", [Sampled(8), TopK(5), Hidden(), Dense("float16"), Candidates((3, 17))], ids=repr)
def test_auto_is_what_the_store_holds_in_training_and_evaluation(check: Check, encoding: Encoding) -> None:
    checked = check(encoding, eval_steps=5)
    assert checked.asking.encoding == checked.eval_asking.encoding == encoding
    assert checked.asking.fingerprint == "random 0"
    assert checked.corpus.held_out is not None
    assert (len(checked.corpus.train), len(checked.corpus.held_out)) == (33, 5)


def test_order_and_samples_are_those_of_the_prepared_corpus(check: Check, corpus: Corpus) -> None:
    ours, theirs = check(Sampled(8)), check(Sampled(8), data=sources(corpus))
    assert type(ours.corpus.train) is not type(theirs.corpus.train)
    assert ours.corpus.train.fingerprint == theirs.corpus.train.fingerprint
    assert ours.num_steps == theirs.num_steps
    assert ours.corpus.train.sample_lengths().tolist() == theirs.corpus.train.sample_lengths().tolist()
    for step in range(ours.num_steps):
        assert ours.steps.shard_ids(step) == theirs.steps.shard_ids(step)
        for shard in range(4):
            for mine, other in zip(ours.steps.shard(step, shard), theirs.steps.shard(step, shard), strict=True):
                assert mine.token_ids.tolist() == other.token_ids.tolist()
                assert mine.labels.tolist() == other.labels.tolist()
                assert mine.mask.tolist() == other.mask.tolist()
                assert mine.segment_lengths == other.segment_lengths


@pytest.mark.parametrize(
    ("encoding", "keys", "named"),
    [
        (Sampled(8), {"encoding": "top_k:8"}, r"top_k:8:f16 is asked for, and it holds sampled:8:0"),
        (Hidden(), {"encoding": "sampled:50"}, r"sampled:50:0 is asked for.*hidden:bf16; .*store derive"),
        (Sampled(8), {"temperature": 2}, r"temperature 2 is asked for, and it holds sampled:8:0 at 1"),
        (TopK(5), {"temperature": 2}, r"temperature 2 is asked for, and it holds top_k:5:f16 at 1"),
        (Candidates((3,)), {"temperature": 2}, r"temperature 2 is asked for"),
        (Sampled(8), {"data": {"block_size": 32}}, r"blocks of 16 tokens, and data.block_size is 32"),
        (Sampled(8), NARROWER, r"a vocabulary of 55 ids is asked for, and its answers cover 60"),
        (Sampled(8), {"loss": "jsd"}, r"loss jsd needs the teacher's whole distribution.*sampled:8:0"),
        (Sampled(8), {"top_k_tail": "renormalise"}, r"top_k_tail has no effect.*sampled:8:0"),
        (Sampled(8), {"eval_encoding": "hidden", "eval_steps": 5}, r"eval_encoding hidden is asked for.*sampled:8:0"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_named(
    check: Check, encoding: Encoding, keys: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        check(encoding, **keys)


@pytest.mark.parametrize("encoding", [Hidden(), Dense()], ids=repr)
def test_what_is_exact_fits_any_temperature_loss_and_narrower_student(check: Check, encoding: Encoding) -> None:
    checked = check(encoding, temperature=3, loss="jsd", **NARROWER)
    assert (checked.asking.temperature, checked.asking.vocabulary_size) == (3, 55)


def test_the_sources_beside_a_store_must_be_its_own(check: Check, corpus: Corpus, tmp_path: Path) -> None:
    other = small_corpus(tmp_path / "other", tokens=700)
    ours, theirs = corpus[0].train.fingerprint, other[0].train.fingerprint
    with pytest.raises(ConfigurationError, match=rf"other data: .*{theirs}.*{ours}"):
        check(Sampled(8), data=sources(other))
    with pytest.raises(ConfigurationError, match=r"blocks of 16 tokens, and data.block_size is 8"):
        check(Sampled(8), data=sources(corpus, block_size=8))
    with structlog.testing.capture_logs() as logs:
        checked = check(Sampled(8), data=sources(other), live=RandomTeacher(VOCABULARY).describe())
    assert checked.corpus.train.fingerprint == theirs
    assert "store_is_of_other_data" in [log["event"] for log in logs]


def test_keys_of_a_held_out_part_have_no_effect_where_the_store_has_none(check: Check, tmp_path: Path) -> None:
    whole = small_corpus(tmp_path / "whole", held_out=None)
    assert check(Sampled(8), store={"corpus": whole}).corpus.held_out is None
    with pytest.raises(ConfigurationError, match=r"eval_steps has no effect: the store .* has no held-out part"):
        check(Sampled(8), store={"corpus": whole}, eval_steps=5)


def test_a_share_of_a_store_trains_only_beside_a_teacher_with_named_sources(
    check: Check, corpus: Corpus, tmp_path: Path
) -> None:
    live = RandomTeacher(VOCABULARY).describe()
    assert check(Sampled(8), store={"share": (0, 2)}, data=sources(corpus), live=live).store is not None
    with pytest.raises(ConfigurationError, match=r"share 0/2"):
        check(Sampled(8), store={"share": (0, 2)}, live=live)
    with pytest.raises(StoreError, match=r"share 0/2.*merge"):
        open_store(tmp_path / "store")


def test_beside_a_teacher_another_held_out_encoding_is_the_teachers(check: Check, corpus: Corpus) -> None:
    live = RandomTeacher(VOCABULARY).describe()
    checked = check(Sampled(8), data=sources(corpus), live=live, eval_encoding="hidden", eval_steps=5)
    assert (checked.asking.encoding, checked.eval_asking.encoding) == (Sampled(8), Hidden())
    assert checked.fetches_head
    assert check(Sampled(8), data=sources(corpus), live=live, eval_steps=5).eval_asking.encoding == Sampled(8)


class Words:
    """A tokenizer of so many words."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        return {f"w{index}": index for index in range(self._size)}


def test_another_tokenizer_is_refused_with_both_fingerprints(corpus: Corpus, tmp_path: Path) -> None:
    from stillhouse.fingerprint import tokens_fingerprint

    make_store(tmp_path / "store", corpus, Sampled(8))
    store = open_store(tmp_path / "store")
    check_tokenizer(Words(50), store)  # made of ids: by no tokenizer
    known = tokens_fingerprint(tuple(f"w{index}" for index in range(50)))
    store.train.tokenizer_fingerprint = known
    check_tokenizer(Words(50), store)
    other = tokens_fingerprint(tuple(f"w{index}" for index in range(51)))
    with pytest.raises(ConfigurationError, match=rf"another tokenizer: .*{known}.*{other}.*--tokenizer"):
        check_tokenizer(Words(51), store)


@pytest.mark.parametrize(
    ("encoding", "temperature", "at", "knows_choice"),
    [
        (Sampled(8), 1.0, 1.0, False),
        (Sampled(8), 2.0, 2.0, False),
        (Candidates((3, 17)), 2.0, 1.0, False),
        (TopK(5), 2.0, 1.0, True),
        (Hidden(), 2.0, 1.0, True),
    ],
    ids=repr,
)
def test_the_held_out_part_is_evaluated_with_what_the_store_holds(
    check: Check, tmp_path: Path, encoding: Encoding, temperature: float, at: float, knows_choice: bool
) -> None:
    checked = check(encoding, store={"temperature": temperature}, temperature=temperature, eval_steps=5)
    assert checked.eval_asking.temperature == at
    assert checked.corpus.held_out is not None
    stored = StoreTeacher(open_store(tmp_path / "store"))
    head = stored.output_head().to(dtype=torch.float32, device=torch.device("cpu")) if encoding == Hidden() else None
    evaluator = Evaluator(checked.corpus.held_out, stored.answer, checked.eval_asking, 0, head)
    evaluation = evaluator.evaluate(FixtureTrainee(VOCABULARY))
    assert evaluation is not None
    assert (evaluation.agreement is not None) == knows_choice
    assert evaluation.kl > 0
    assert evaluation.cross_entropy == pytest.approx(torch.log(torch.tensor(50.0)).item(), rel=1e-6)


def test_a_plan_says_where_answers_are_read(check: Check, tmp_path: Path) -> None:
    checked = check(Sampled(8))
    recipe = Recipe.model_validate(
        {
            "store": str(tmp_path / "store"),
            "output_dir": str(tmp_path / "run"),
            "student": {"kind": "fixture"},
            "global_batch_size": 4,
        }
    )
    plan = make_plan(recipe, checked, torch.device("cpu"))
    assert plan.as_json()["store"] == str(tmp_path / "store")
    assert (plan.samples, plan.held_out_samples, plan.encoding) == (33, 5, "sampled:8:0")
    assert checked.corpus.train.block_size == BLOCK_SIZE
