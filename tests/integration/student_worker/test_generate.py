"""`stillhouse generate`: what it opens, what it prints, and what it says of what it cannot open."""

from __future__ import annotations

import io
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from stillhouse.cli.main import run
from student_worker.recipe.schema import CausalLMSpec
from student_worker.students.base import ModelCard
from student_worker.students.lora import LoraStudent, add_adapters
from student_worker.verbs.generation import generate

APP = typer.Typer()
APP.command()(generate)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the verb; returns its exit code, what it printed and its error."""

    def call(model: Path | str, *arguments: str) -> tuple[int, str, str]:
        code = run(APP, "stillhouse generate", [str(model), "--device", "cpu", "--max-new-tokens", "6", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.replace("\n", " ")

    return call


def said(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_the_text_printed_is_the_models_own_continuation(say: Any, tiny_llama_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, out, _ = say(tiny_llama_folder, "--prompt", "the wash", "--no-chat")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    ids = tokenizer("the wash", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert code == 0
    assert out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_several_prompts_are_answered_each_as_if_alone(say: Any, tiny_llama_folder: Path) -> None:
    drawn = ("--temperature", "0.8", "--seed", "5", "--json")
    _, both, _ = say(tiny_llama_folder, "-p", "the mash", "-p", "a teacher", *drawn)
    _, second, _ = say(tiny_llama_folder, "-p", "a teacher", *drawn)
    records = said(both)
    assert [record["prompt"] for record in records] == ["the mash", "a teacher"]
    assert records[1]["text"] == said(second)[0]["text"]
    assert all(record["tokens"] <= 6 and record["finish"] in ("stop", "length") for record in records)


def test_draws_follow_from_the_seed(say: Any, tiny_llama_folder: Path) -> None:
    def text(seed: int) -> str:
        arguments = ("-p", "the mash", "--temperature", "5", "--seed", str(seed), "--json")
        return str(said(say(tiny_llama_folder, *arguments)[1])[0]["text"])

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_chat_template_is_used_where_there_is_one(say: Any, tiny_llama_folder: Path) -> None:
    asked, plain = (
        said(say(tiny_llama_folder, "-p", "mash", "--json", *flags)[1])[0] for flags in ((), ("--no-chat",))
    )
    assert asked["prompt_tokens"] > plain["prompt_tokens"]


def test_a_prompt_is_read_from_standard_input(
    say: Any, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"die Maische\n")))
    assert said(say(tiny_llama_folder, "-p", "-", "--json")[1])[0]["prompt"] == "die Maische"


def test_adapters_are_heard_on_the_base_that_they_name(say: Any, tiny_llama_folder: Path, tmp_path: Path) -> None:
    from stillhouse.models import load_causal_lm

    spec = CausalLMSpec.model_validate({"kind": "causal_lm", "model": str(tiny_llama_folder), "lora_r": 2})
    base = load_causal_lm(tiny_llama_folder, dtype="float32")
    adapted = add_adapters(base, spec, seed=0, base_name=str(tiny_llama_folder))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.constant_(parameter, 0.5)
    LoraStudent(adapted, merge=True).export(tmp_path / "merged", ModelCard())
    LoraStudent(adapted, merge=False).export(tmp_path / "adapter", ModelCard())
    for file in tiny_llama_folder.glob("*token*"):
        shutil.copy(file, tmp_path / "merged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own use of transformers
        texts = [say(folder, "-p", "mash", "--no-chat")[:2] for folder in (tmp_path / "adapter", tmp_path / "merged")]
    assert texts[0] == texts[1]
    assert texts[0] != say(tiny_llama_folder, "-p", "mash", "--no-chat")


def test_a_runs_folder_is_heard_by_its_export(say: Any, tiny_llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert "has not come to its export yet" in say(tmp_path, "-p", "a")[2]
    shutil.copytree(tiny_llama_folder, tmp_path / "export")
    assert say(tmp_path, "-p", "mash") == say(tiny_llama_folder, "-p", "mash")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"state.json": "{}"}, "is a checkpoint, to resume from; name the run's export"),
        ({}, "holds no config.json"),
        ({"adapter_config.json": "{}"}, "adapter_config.json does not name a base"),
        ({"adapter_config.json": '{"base_model_name_or_path": "/no/such/base"}'}, "'/no/such/base' does not exist"),
    ],
)
def test_what_cannot_be_opened_is_named(say: Any, tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, error = say(tmp_path, "-p", "a")
    assert (code, out) == (2, "")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--prompt"),
        (["-p", "-", "-p", "-"], "given twice"),
        (["-p", "a", "--temperature", "-1"], "temperature"),
        (["-p", "a", "--temperature", "nan"], "'--temperature': Input should be greater than or equal to 0, not 'nan'"),
        (["-p", "a", "--temperature", "inf"], "--temperature inf: give a finite number"),
        (["-p", "mash " * 600, "--no-chat"], "the model reads 512 at most"),
        (["-p", "a", "--device", "cuda:99"], "device"),
    ],
)
def test_wrong_arguments_are_named(say: Any, tiny_llama_folder: Path, arguments: list[str], message: str) -> None:
    code, out, error = say(tiny_llama_folder, *arguments)
    assert (code, out) == (2, "")
    assert message in error


def test_a_chat_without_a_template_is_refused(say: Any, tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny_llama_folder, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert say(folder, "-p", "mash")[0] == 0
    code, _, error = say(folder, "-p", "mash", "--chat")
    assert code == 2
    assert "no chat template; give --no-chat" in error
