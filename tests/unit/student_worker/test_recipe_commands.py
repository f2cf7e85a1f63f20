"""`stillhouse student recipe`: a file to start from, a check that prints every value with its origin, the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stillhouse.cli.main import run
from student_worker.cli import app
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import keys, load_recipe


def command(*words: str) -> int:
    return run(app, "student", ["recipe", *words])


def test_a_new_recipe_is_valid_names_every_key_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    assert command("init", str(file)) == 0
    text = file.read_text()
    assert load_recipe(file, {}, {}).max_steps == 200
    left_out = {"teacher_token", "run_token", "worker_index", "local_workers", "vocabulary_size", "initial_value"}
    left_out |= {"worker_index_by_lock", "http_token"}
    assert {key.name for key in keys().values() if f"{key.path[-1]}: " not in text} == left_out
    assert command("init", str(file)) == 2
    assert "left as it is" in capsys.readouterr().err
    assert file.read_text() == text
    assert command("init", str(tmp_path / "absent" / "recipe.yaml")) == 2


def test_every_commented_default_is_what_the_key_has_anyway(tmp_path: Path) -> None:
    from student_worker.recipe.text import starting_file

    lines = starting_file().splitlines()
    uncommented = [line.replace("# ", "", 1) if _is_key(line) else line for line in lines]
    content = yaml.safe_load("\n".join(uncommented))
    begun = load_recipe(_written(tmp_path, starting_file()), {}, {}).model_dump()
    for key in keys().values():
        value = content if len(key.path) == 1 else content[key.path[0]]
        if key.path[-1] in value and key.name not in ("data", "student", "keep_layers"):
            here = begun if len(key.path) == 1 else begun[key.path[0]]
            given = value[key.path[-1]]
            expected = here[key.path[-1]]
            same = str(given) == str(expected) or given == expected or (given == [] and expected == ())
            assert same or float(given) == expected, key.path


def _is_key(line: str) -> bool:
    words = line.strip().removeprefix("# ").split(":")
    return line.strip().startswith("# ") and len(words) > 1 and any(key.path[-1] == words[0] for key in keys().values())


def _written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_recipe_is_printed_whole_with_its_hash_and_where_every_value_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.yaml"
    command("init", str(file))
    monkeypatch.setenv("STUDENT_SEED", "7")
    monkeypatch.setenv("STUDENT_RUN_TOKEN", "quiet")
    capsys.readouterr()
    assert command("validate", str(file)) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert "seed: 7  # STUDENT_SEED" in lines
    assert f"max_steps: 200  # {file}" in lines
    assert "alpha: 0.0  # default" in lines
    assert "quiet" not in printed
    monkeypatch.delenv("STUDENT_RUN_TOKEN")
    again = load_recipe(_written(tmp_path, printed), {}, {})
    assert lines[0] == f"# hash {again.hash}"
    assert command("validate", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out)["origins"]["seed"] == "STUDENT_SEED"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("learning_rat: 1\n", "did you mean learning_rate"),
        ("alpha: 2\n", "alpha: "),
        ("lr: 2\n", "it is learning_rate"),
        ("- 1\n", "must hold a mapping"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    assert command("validate", str(_written(tmp_path, content))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_schema_knows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    assert command("schema", "--markdown") == 0
    assert capsys.readouterr().out.startswith("| key | default |")
