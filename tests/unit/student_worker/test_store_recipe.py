"""A recipe that names a store: what it does without, what it refuses, and that its hash is a live run's."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.errors import ConfigurationError
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import load_recipe, load_with_origins
from student_worker.recipe.text import canonical

FLAGS = {"store": "stores/first", "output_dir": "runs/x", "keep_layers": "0-2"}
BESIDE: dict[str, Any] = {"teacher": "127.0.0.1:8001", "data": ["notes.txt"]}


def load(environment: Any = None, **flags: Any) -> Recipe:
    return load_recipe(None, {**FLAGS, **flags}, environment or {})


def test_a_store_takes_the_place_of_teacher_and_data() -> None:
    recipe = load()
    assert (recipe.store, recipe.teacher, recipe.data.sources) == ("stores/first", None, ())
    assert recipe.reads_store
    assert not load(data=["notes.txt"]).reads_store
    assert load(**BESIDE).teacher == "127.0.0.1:8001"
    assert load({"STUDENT_STORE": "s3://bucket/store"}, store=None).store == "s3://bucket/store"


def test_the_hash_is_that_of_a_live_run() -> None:
    live = load_recipe(None, {**FLAGS, **BESIDE, "store": None, "encoding": "sampled:50"}, {})
    assert load(encoding="sampled:50").hash == live.hash


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher_ca", "ca.pem"),
        ("teacher_wait_seconds", "5"),
        ("request_timeout_seconds", "5"),
    ],
)
def test_keys_of_a_live_teacher_have_no_effect_with_a_store_alone(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{key} has no effect: it needs a teacher"):
        load(**{key: value})
    load(**{key: value}, **BESIDE)


def test_a_certificate_and_a_token_are_refused_too() -> None:
    with pytest.raises(ConfigurationError, match=r"teacher_certificate has no effect: it needs a teacher"):
        load(teacher_certificate="own.pem", teacher_key="own.key")
    with pytest.raises(ConfigurationError, match=r"teacher_token has no effect"):
        load({"STUDENT_TEACHER_TOKEN": "hush"})


@pytest.mark.parametrize(("key", "value"), [("held_out_samples", "4"), ("append_eos", "false"), ("learn", "all")])
def test_how_a_corpus_is_read_has_no_effect_without_its_sources(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.{key} has no effect: the samples are the store's own"):
        load(**{key: value})
    load(**{key: value}, data=["notes.txt"])


def test_what_only_the_open_store_can_tell_is_let_be_until_then() -> None:
    keys = {"eval_steps": "5", "top_k_tail": "renormalise", "load_best_model_at_end": True, "block_size": "64"}
    assert load(**keys).data.block_size == 64


def test_neither_teacher_nor_store_names_both_that_are_missing() -> None:
    with pytest.raises(
        ConfigurationError, match=r"teacher: missing; .*--teacher, or a store by --store; .*data: missing; .*--store"
    ):
        load_recipe(None, {"output_dir": "runs/x"}, {})


def test_the_canonical_text_has_no_key_that_says_nothing() -> None:
    text = canonical(load_with_origins(None, FLAGS, {}))
    assert '"stores/first"' in text
    for absent in ("teacher", "data", "block_size", "wait_seconds"):
        assert absent not in text
