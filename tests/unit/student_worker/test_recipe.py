"""The recipe: one schema, from file, environment and flags; every key applied or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import ConfigurationError
from student_worker.recipe.schema import CausalLMSpec, FixtureSpec, Recipe
from student_worker.recipe.sources import keys, load_recipe

FLAGS = {"teacher": "127.0.0.1:8001", "data": ["notes.txt"], "output_dir": "runs/x", "keep_layers": "0-2,5"}


def load(**flags: Any) -> Recipe:
    return load_recipe(None, {**FLAGS, **flags}, {})


def test_flags_alone_make_a_recipe() -> None:
    recipe = load(learning_rate="1e-4", max_steps="30")
    assert recipe.learning_rate == 1e-4
    assert recipe.max_steps == 30
    assert recipe.data.sources == ("notes.txt",)
    assert isinstance(recipe.student, CausalLMSpec)
    assert recipe.student.keep_layers == (0, 1, 2, 5)


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "teacher: a:1\noutput_dir: runs/file\nseed: 1\nalpha: 0.1\ntemperature: 1\n"
        "data: {sources: [notes.txt], block_size: 64}\nstudent: {kind: causal_lm, keep_layers: 0-3}\n"
    )
    environment = {"STUDENT_SEED": "2", "STUDENT_ALPHA": "0.2", "STUDENT_BLOCK_SIZE": "32", "HOME": "/"}
    recipe = load_recipe(file, {"seed": "3", "alpha": None}, environment)
    assert (recipe.seed, recipe.alpha, recipe.temperature) == (3, 0.2, 1.0)
    assert recipe.data.block_size == 32
    assert recipe.teacher == "a:1"


def test_every_key_has_one_flat_name() -> None:
    assert keys()["data"].path == ("data", "sources")
    assert keys()["student"].path == ("student", "kind")
    assert keys()["keep_layers"].path == ("student", "keep_layers")
    assert keys()["learning_rate"].path == ("learning_rate",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rat: 1e-4", "did you mean learning_rate?"),
        ("block_size: 64", "it is data.block_size"),
        ("zzz: 1", "zzz: unknown key"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(line)
    with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")):
        load_recipe(file, FLAGS, {})


def test_an_unknown_variable_is_refused_and_kubernetes_own_are_let_be() -> None:
    with pytest.raises(ConfigurationError, match=r"STUDENT_LEARNING_RAT.*STUDENT_LEARNING_RATE"):
        load_recipe(None, FLAGS, {"STUDENT_LEARNING_RAT": "1"})
    links = {
        "STUDENT_WORKER_SERVICE_HOST": "10.0.0.1",
        "STUDENT_WORKER_PORT": "tcp://10.0.0.1:8010",
        "STUDENT_WORKER_PORT_8010_TCP_ADDR": "10.0.0.1",
        "STUDENT_WORKER_SERVICE_PORT_HTTP": "8010",
    }
    assert load_recipe(None, FLAGS, {**links, "STUDENT_HTTP_PORT": "9000"}).http_port == 9000


def test_a_missing_key_is_named_with_its_flag() -> None:
    with pytest.raises(ConfigurationError, match=r"teacher: missing; .*--teacher"):
        load_recipe(None, {**FLAGS, "teacher": None}, {})
    with pytest.raises(ConfigurationError, match=r"data.*--data"):
        load_recipe(None, {**FLAGS, "data": None}, {})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"alpha": "1.1"}, r"alpha.*less than or equal to 1.*1\.1"),
        ({"alpha": "-0.1"}, "alpha"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": "inf"}, "temperature"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"micro_shards": "3"}, "power of two; 3 is none, 4 is the next"),
        ({"micro_shards": "16"}, "micro_shards 16 is more than the 8 samples"),
        ({"max_steps": "5", "num_train_epochs": "1"}, "max_steps and num_train_epochs"),
        ({"max_steps": "5", "warmup_steps": "6"}, "warmup_steps 6 is more than max_steps 5"),
        ({"keep_layers": "9-0"}, "runs backwards"),
        ({"keep_layers": "1,1"}, "rise strictly"),
        ({"keep_layers": None}, "student: missing"),
        ({"keep_layers": None, "student": "causal_lm"}, "name the student"),
        ({"config": "config.json"}, "config draws new weights"),
        ({"keep_layers": "0-99999999999"}, "names a layer above 100000"),
        ({"student": "fixture"}, "keep_layers: unknown key; this kind of student has none"),
        ({"student": "lora"}, "student"),
        ({"encoding": "top_k"}, "encoding"),
        ({"encoding": "dense:f8"}, "encoding"),
        ({"lr_scheduler_type": "sawtooth"}, "lr_scheduler_type"),
        ({"block_size": "1"}, "block_size"),
        ({"save_steps": "0"}, "save_steps"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(flags: dict[str, str | None], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(**flags)


@pytest.mark.parametrize(
    ("content", "key"),
    [("max_steps: 5\nseed: 1\nmax_steps: 7\n", "max_steps"), ("data:\n  sources: [a]\n  sources: [b]\n", "sources")],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, content: str, key: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=f"'{key}' stands twice"):
        load_recipe(file, FLAGS, {})


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "data: notes.txt", "student: fixture"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"recipe\.yaml"):
        load_recipe(file, FLAGS, {})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml", FLAGS, {})


def test_the_hash_covers_what_the_weights_depend_on_and_no_more() -> None:
    plain = load()
    assert plain.hash == load(teacher="other:1", output_dir="elsewhere", save_steps="5", http_port="0").hash
    assert load(encoding="dense").hash == load(encoding="dense:float32").hash
    for changed in (
        {"seed": "1"},
        {"alpha": "0.5"},
        {"keep_layers": "0-3"},
        {"micro_shards": "8"},
        {"encoding": "dense"},
    ):
        assert plain.hash != load(**changed).hash


def test_secrets_stay_out_of_text() -> None:
    recipe = load_recipe(None, FLAGS, {"STUDENT_TEACHER_TOKEN": "hush", "STUDENT_RUN_TOKEN": "quiet"})
    assert recipe.teacher_token is not None
    assert recipe.teacher_token.get_secret_value() == "hush"
    assert "hush" not in repr(recipe) + recipe.model_dump_json()
    assert "quiet" not in repr(recipe) + recipe.model_dump_json()


def test_a_fixture_needs_no_model() -> None:
    recipe = load(student="fixture", keep_layers=None, vocabulary_size="50")
    assert recipe.student == FixtureSpec(kind="fixture", vocabulary_size=50, initial_value=0.0)


def test_every_help_text_on_alpha_states_the_direction() -> None:
    assert "1 - alpha weighs KL" in str(keys()["alpha"].info.description)
