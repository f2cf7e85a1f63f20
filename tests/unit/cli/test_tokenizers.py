"""`stillhouse tokenizers compare`: who can be paired, on how many ids, and what stands in the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.main import run
from stillhouse.cli.tokenizers import app

Capture = pytest.CaptureFixture[str]
MakeTokenizer = Callable[..., Path]

TOKENS = ("<|end|>", "[wash]", "still", "spirit", "cut")


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> MakeTokenizer:
    """Makes a folder with a tokenizer of whole words, ids in their order, and added ones after them."""

    def make(name: str, words: tuple[str, ...] = TOKENS, added: tuple[str, ...] = (), head: int | None = None) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(list(added))
        folder = tmp_path / name
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        if head is not None:
            LlamaConfig(vocab_size=head).save_pretrained(folder)
        return folder

    return make


def compare(*arguments: str | Path) -> int:
    return run(app, "stillhouse tokenizers", ["compare", *(str(argument) for argument in arguments)])


def compared(capsys: Capture, *arguments: str | Path) -> dict[str, Any]:
    code = compare(*arguments, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if found["can_be_paired"] else 2)
    return found


def test_two_copies_of_a_tokenizer_can_be_paired_on_every_id(
    tiny_llama_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    copy = shutil.copytree(tiny_llama_folder, tmp_path / "copy")
    found = compared(capsys, tiny_llama_folder, copy)
    assert (found["shared_ids"], found["different_ids"], found["first_difference"]) == (300, 0, None)
    assert found["a"]["tokens"] == found["a"]["head_size"] == found["b"]["head_size"] == 300
    assert found["a"]["fingerprint"] == found["b"]["fingerprint"]
    assert compare(tiny_llama_folder, copy) == 0
    assert "They can be paired, on the first 300 ids." in capsys.readouterr().out


def test_the_ids_beyond_the_shorter_are_shown_and_leave_the_pair_whole(
    make_tokenizer: MakeTokenizer, capsys: Capture
) -> None:
    short, long = make_tokenizer("short"), make_tokenizer("long", added=("<tool>", "<call>"))
    found = compared(capsys, short, long)
    assert found["can_be_paired"]
    assert found["shared_ids"] == 5
    assert found["beyond_the_shorter"] == {"ids": 2, "first_tokens": ["<tool>", "<call>"]}
    assert compare(long, short) == 0
    assert "A has 2 ids beyond the last of B: '<tool>', '<call>'" in capsys.readouterr().out


def test_the_first_that_differs_is_named_with_both_tokens_and_the_number_of_all(
    make_tokenizer: MakeTokenizer, capsys: Capture
) -> None:
    ours = make_tokenizer("ours")
    theirs = make_tokenizer("theirs", ("<|end|>", "[mash]", "still", "cut", "spirit", "malt"))
    found = compared(capsys, ours, theirs)
    assert found["first_difference"] == {"id": 1, "a": "[wash]", "b": "[mash]"}
    assert (found["shared_ids"], found["different_ids"], found["compared_ids"]) == (0, 3, 5)
    assert compare(ours, theirs) == 2
    shown = capsys.readouterr().out
    assert "They cannot be paired: 3 of the 5 ids that both have differ." in shown
    assert "id 1: '[wash]' in A, '[mash]' in B" in shown
    assert "B has 1 ids beyond the last of A: 'malt'" in shown


def test_wide_heads_are_padding_and_narrow_ones_cut_what_is_shared(
    make_tokenizer: MakeTokenizer, capsys: Capture
) -> None:
    padded, plain, narrow = (make_tokenizer(str(head), head=head) for head in (64, 5, 4))
    assert compared(capsys, padded, plain)["shared_ids"] == 5
    found = compared(capsys, padded, narrow)
    assert (found["shared_ids"], found["a"]["head_size"], found["b"]["head_size"]) == (4, 64, 4)
    assert compared(capsys, padded, make_tokenizer("alone"))["b"]["head_size"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.gguf", "TINY"], "'nowhere.gguf' does not exist"),
        (["TINY", "./nowhere"], "'./nowhere' does not exist"),
        (["TINY", "TINY", "--revision-b", "main"], "revision 'main' has no effect"),
        (["TINY", "EMPTY"], "holds no tokenizer"),
        (["TINY"], "argument"),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_2(
    arguments: list[str], complaint: str, tiny_llama_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"TINY": str(tiny_llama_folder), "EMPTY": str(tmp_path / "empty")}
    assert compare(*(places.get(argument, argument) for argument in arguments)) == 2
    shown, errors = capsys.readouterr()
    assert shown == ""
    assert complaint in errors
    assert errors.count("\n") == 1


@pytest.mark.real_weights
def test_smollm2_is_paired_with_itself_and_with_no_stranger(tiny_llama_folder: Path, capsys: Capture) -> None:
    found = compared(capsys, "smollm2", "smollm2")
    assert (found["shared_ids"], found["a"]["head_size"]) == (49_152, 49_152)
    found = compared(capsys, "smollm2", tiny_llama_folder)
    assert not found["can_be_paired"]
    assert found["compared_ids"] == 300
    assert found["beyond_the_shorter"]["ids"] == 48_852
