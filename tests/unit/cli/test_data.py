"""`stillhouse data`: what it shows, and one line and exit code 2 for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.cli.data import app
from stillhouse.cli.main import run
from stillhouse.data import DataSpec

Capture = pytest.CaptureFixture[str]


def data(*arguments: str | Path) -> int:
    return run(app, "stillhouse data", [str(argument) for argument in arguments])


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    turns = [
        {"role": "user", "content": "what is a still"},
        {"role": "assistant", "content": "it parts \x1b[31mspirit\x1b[0m from [water] 🥃"},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns}) + "\n")
    return path


def test_inspect_shows_what_is_learnt_and_where_documents_end(
    conversations: Path, tiny_llama_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert data("inspect", conversations, "--tokenizer", tiny_llama_folder, "--cache-dir", tmp_path / "cache") == 0
    shown, errors = capsys.readouterr()
    said = "[+it parts ␛[31mspirit␛[0m from [water] 🥃<|im_end|>+]"
    assert f"<|im_start|>user\nwhat is a still<|im_end|>\n<|im_start|>assistant\n{said}\n" in shown
    assert shown.count(said) == 2
    assert shown.count("--- next document ---") == 1
    assert "train" in shown.split()
    assert errors == ""


def test_prepare_says_the_manifest_as_json_and_finds_it_again(
    conversations: Path, tiny_llama_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    cache = ("--tokenizer", tiny_llama_folder, "--cache-dir", tmp_path / "cache", "--block-size", "16", "--json")
    manifests = []
    for named in ((conversations,), ("--data", conversations)):
        assert data("prepare", *named, *cache) == 0
        manifests.append(json.loads(capsys.readouterr().out))
    assert [manifest.pop("from_cache") for manifest in manifests] == [False, True]
    assert manifests[0] == manifests[1]
    assert manifests[0]["train"]["num_documents"] == 2
    assert Path(manifests[0]["folder"], "manifest.json").is_file()


def test_every_field_of_a_corpus_has_a_flag(capsys: Capture) -> None:
    assert data("prepare", "--help") == 0
    # The help is laid out in a table that cuts long names on a narrow terminal.
    shown = capsys.readouterr().out
    assert "--data" in shown
    for field in DataSpec.model_fields:
        if field != "sources":
            assert f"--{field.replace('_', '-')}"[:14] in shown


def test_several_sources_and_switches_reach_the_corpus(
    tiny_llama_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"hello {name}")
    arguments = (
        tmp_path / "a.txt",
        tmp_path / "b.txt",
        "--tokenizer",
        tiny_llama_folder,
        "--cache-dir",
        tmp_path / "c",
    )
    tokens = []
    for switch in ("--append-eos", "--no-append-eos"):
        assert data("prepare", *arguments, switch, "--json") == 0
        manifest = json.loads(capsys.readouterr().out)
        assert manifest["train"]["num_documents"] == 2
        tokens.append(manifest["train"]["num_tokens"])
    assert tokens[0] - tokens[1] == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "sources must be given"),
        (["nowhere.txt"], "nowhere.txt does not exist"),
        (["CHAT", "--block-size", "1"], "block_size: Input should be greater than or equal to 2; got 1"),
        (["CHAT", "--held-out-fraction", "1.5"], "held_out_fraction: Input should be less than 1; got 1.5"),
        (["CHAT", "--dataset-split", "train"], "dataset_split has no effect without a hub dataset"),
        (["CHAT", "--part", "held_out"], "part held_out: nothing is held out"),
        (["CHAT", "--sample", "7"], "sample 7: the train part has samples 0 to 0"),
        (["CHAT", "--revision", "main"], "revision 'main' has no effect: the tokenizer"),
        (["CHAT", "--chat-template", "nowhere.jinja"], "chat_template nowhere.jinja cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    conversations: Path, tiny_llama_folder: Path, tmp_path: Path, capsys: Capture, arguments: list[str], complaint: str
) -> None:
    named = [str(conversations) if argument == "CHAT" else argument for argument in arguments]
    assert data("inspect", *named, "--tokenizer", tiny_llama_folder, "--cache-dir", tmp_path / "cache") == 2
    shown, errors = capsys.readouterr()
    assert shown == ""
    assert errors.startswith("error: ")
    assert complaint in errors
    assert errors.count("\n") == 1


def test_a_folder_without_a_tokenizer_is_refused(conversations: Path, tmp_path: Path, capsys: Capture) -> None:
    assert data("inspect", conversations, "--tokenizer", tmp_path, "--cache-dir", tmp_path / "cache") == 2
    assert "holds no tokenizer" in capsys.readouterr().err
