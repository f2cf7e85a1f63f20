"""Reading a corpus: every kind of file, and an error with its place for everything that can be wrong in one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stillhouse.data.items import Conversation, Item, PromptCompletion, Text, Tokens
from stillhouse.data.sources import files as files_module
from stillhouse.data.sources import resolve
from stillhouse.data.sources.readers import pieces
from stillhouse.data.spec import data_spec
from stillhouse.errors import DataError


def read(*names: Path | str, **settings: Any) -> list[Item]:
    spec = data_spec({"sources": [str(name) for name in names], **settings})
    return [item for source in resolve(spec.sources, spec) for item in source.read()]


def texts(*names: Path | str, **settings: Any) -> list[str]:
    items = read(*names, **settings)
    return [item.text for item in items if isinstance(item, Text)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(path: Path, *records: Any) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


# Files of every kind.


def test_a_text_file_is_one_document_with_its_line_ends_as_they_are(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", "\ufeffone\r\ntwo\n")) == ["one\r\ntwo\n"]


def test_a_separator_makes_documents_of_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\ntwo\n\n\n\n  \n\nthree")
    assert texts(path, text_separator=r"\n\n") == ["one", "two", "three"]
    assert [str(item.place) for item in read(path, text_separator="\n\n")][2] == f"{path}, document 3"


def compressed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        return write(path, gzip.compress(content[:7]) + gzip.compress(content[7:]))
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)
    return path


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_by_their_ending(tmp_path: Path, ending: str) -> None:
    assert texts(compressed(tmp_path / f"a.txt{ending}", b"hello there " * 1000)) == ["hello there " * 1000]
    lines = compressed(tmp_path / f"a.jsonl{ending}", b'{"text": "one"}\n{"text": "two"}\n')
    assert texts(lines) == ["one", "two"]
    shard = compressed(tmp_path / f"a.bin{ending}", np.arange(10, dtype="<u4").tobytes())
    assert np.concatenate([item.token_ids for item in read(shard) if isinstance(item, Tokens)]).tolist() == list(
        range(10)
    )


def test_jsonl_is_told_by_the_columns_of_its_first_record(tmp_path: Path) -> None:
    assert texts(jsonl(tmp_path / "a.jsonl", {"text": "one", "id": 3}, {"text": "two"})) == ["one", "two"]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (conversation,) = read(jsonl(tmp_path / "b.jsonl", {"messages": messages}))
    assert isinstance(conversation, Conversation)
    assert list(conversation.messages) == messages
    pair = jsonl(tmp_path / "c.jsonl", {"prompt": "a", "completion": "b"})
    (asked,) = read(pair)
    assert isinstance(asked, Conversation)
    assert list(asked.messages) == messages
    (plain,) = read(pair, prompts="plain")
    assert isinstance(plain, PromptCompletion)
    assert (plain.prompt, plain.completion) == ("a", "b")


def test_a_prompt_of_messages_is_not_learnt_and_its_completion_is(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = jsonl(tmp_path / "a.jsonl", {"prompt": [*turn, turn[0]], "completion": [turn[1]]})
    (conversation,) = read(path)
    assert isinstance(conversation, Conversation)
    assert conversation.learn_from == 3
    assert list(conversation.messages) == [*turn, *turn]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"body": "one", "text": 3, "messages": []})
    assert texts(path, text_column="body") == ["one"]
    with pytest.raises(DataError, match="line 1: no key 'corpus'"):
        read(path, text_column="corpus")


def test_parquet_is_read_row_by_row_and_absent_fields_of_messages_are_dropped(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "still"}]
    parquet.write_table(pa.table({"messages": [messages] * 3, "other": [1, 2, 3]}), tmp_path / "a.parquet")
    items = read(tmp_path / "a.parquet")
    assert len(items) == 3
    assert isinstance(items[2], Conversation)
    assert items[2].messages == ({"role": "user", "content": "a"}, messages[1])
    assert str(items[2].place).endswith("a.parquet, row 3")


def test_folders_are_read_in_order_of_names_without_hidden_or_foreign_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "LICENSE", ".hidden.txt", ".git/x.txt", "z.md"):
        write(tmp_path / "corpus" / name, name)
    assert texts(tmp_path / "corpus") == ["a/c.txt", "b.txt", "z.md"]
    assert "LICENSE" in texts(tmp_path / "corpus", format="text")


def test_globs_and_several_sources_keep_their_order(tmp_path: Path) -> None:
    for name in ("1.txt", "2.txt", "deep/3.txt"):
        write(tmp_path / name, name)
    assert texts(tmp_path / "deep", tmp_path / "*.txt") == ["deep/3.txt", "1.txt", "2.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["1.txt", "2.txt", "deep/3.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a[1].txt", "one")) == ["one"]


def test_the_builtin_text_is_there_on_every_python() -> None:
    documents = texts("builtin:pydoc-topics")
    assert len(documents) > 50
    assert any("assert" in document for document in documents)


def test_a_folder_that_datasets_opens_is_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    jsonl(tmp_path / "set" / "train.jsonl", *({"text": f"document {number}"} for number in range(5)))
    name = f"hub:{tmp_path / 'set'}"
    assert texts(name) == [f"document {number}" for number in range(5)]
    assert texts(name, dataset_split="train[:2]") == ["document 0", "document 1"]
    with pytest.raises(DataError, match=r"hub:.*nope.*dataset_split"):
        read(name, dataset_split="nope")


# Long documents.


@settings(deadline=None)
@given(st.text("ab \n|", max_size=60), st.lists(st.integers(1, 9), min_size=1), st.sampled_from([None, "\n", "||"]))
def test_pieces_depend_on_the_text_and_not_on_how_it_came(text: str, sizes: list[int], separator: str | None) -> None:
    def chunks() -> Iterator[str]:
        at = 0
        while at < len(text):
            size = sizes[at % len(sizes)]
            yield text[at : at + size]
            at += size

    whole = list(pieces([text], separator, limit=10))
    assert list(pieces(chunks(), separator, limit=10)) == whole
    assert all(len(piece) <= 10 + len(separator or "") for piece, _, _ in whole)
    documents, document = [], ""
    for piece, first, last in whole:
        document = piece if first else document + piece
        if last:
            documents.append(document)
    expected = text.split(separator) if separator else [text]
    assert [document for document in documents if document.strip()] == [part for part in expected if part.strip()]


# What can be wrong.


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.bin", "a.txt.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is empty; remove it"):
        read(write(tmp_path / name, ""))


def test_a_byte_that_is_no_utf8_is_named_with_its_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "grüße ".encode() * 3 + b"\xff rest"
    for read_bytes in (1, 2, 3, 1 << 20):
        monkeypatch.setattr(files_module, "READ_BYTES", read_bytes)
        with pytest.raises(DataError, match=r"a\.txt, byte 24: not UTF-8 \(byte 0xff"):
            read(write(tmp_path / "a.txt", content))
    with pytest.raises(DataError, match=r"b\.jsonl, line 2, byte 25: not UTF-8 \(byte 0xe9"):
        read(write(tmp_path / "b.jsonl", b'{"text": "one"}\n{"text":"\xe9"}\n'))


def test_characters_cut_off_at_the_end_are_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt, byte 2: not UTF-8 .*unexpected end"):
        read(write(tmp_path / "a.txt", "ab🥃".encode()[:-1]))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("hello".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"hello", mtime=0), r"gzip.*\.gz"),
        (b"\x28\xb5\x2f\xfd1234", r"zstd.*\.zst"),
    ],
)
def test_a_file_of_another_encoding_is_recognised(tmp_path: Path, content: bytes, hint: str) -> None:
    with pytest.raises(DataError, match=rf"looks like .*{hint}"):
        read(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl", "a.bin"])
def test_compressed_data_that_is_cut_off_or_foreign_is_named(tmp_path: Path, ending: str, kind: str) -> None:
    content = json.dumps({"text": "".join(chr(97 + i * i % 26) for i in range(5000))}).encode() + b"\n"
    path = compressed(tmp_path / f"{kind}{ending}", content * 20)
    write(path, path.read_bytes()[:-12])
    with pytest.raises(DataError, match=rf"{path.name}: the compressed data is cut off or damaged"):
        read(path)
    write(path, b"this is no compressed data at all")
    with pytest.raises(DataError, match=rf"{path.name}: the compressed data is cut off or damaged"):
        read(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "two"', "line 2, column 15: not JSON"),
        ('["two"]', "line 2: a record must be a JSON object; got list; a JSON array"),
        ("3", "line 2: a record must be a JSON object; got int"),
        ('{"txt": "two"}', "line 2: no key 'text'; it has 'txt'"),
        ('{"text": 3}', "line 2: text must be text; got int"),
        ('{"text": null}', "line 2: text must be text; got NoneType"),
        (r'{"text": "\ud800"}', "line 2: text holds half of a surrogate pair at character 0"),
        ("[" * 100_000, "line 2: not JSON that can be read"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, {complaint}"):
        read(write(tmp_path / "a.jsonl", f'{{"text": "one"}}\n{line}\n'))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], r"messages must be a list of at least one message"),
        ("hello", r"messages must be a list of at least one message \{role, content\}; got 'hello'"),
        ([3], r"messages\[0\] must be an object"),
        ([{"role": "user"}], r"messages\[0\] has no content; it has 'role'"),
        ([{"role": "user", "content": "a"}, {"from": "gpt", "content": "b"}], r"messages\[1\] has no role"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\]\.content must be text; got list"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content must be text; got NoneType"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path: Path, messages: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"line 1: {complaint}"):
        read(jsonl(tmp_path / "a.jsonl", {"messages": messages}))


def test_records_of_no_known_form_or_of_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 1: no column that holds text; expected 'text' or .* got 'body'.*text_column"
    ):
        read(jsonl(tmp_path / "a.jsonl", {"body": "x"}))
    both = jsonl(tmp_path / "b.jsonl", {"text": "one", "messages": []})
    with pytest.raises(DataError, match=r"fit text and messages; say which with record"):
        read(both)
    assert texts(both, record="text") == ["one"]
    assert texts(both, text_column="text") == ["one"]


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(DataError, match="line 2 is longer than 1 MiB"):
        read(write(tmp_path / "a.jsonl", '{"text": "one"}\n' + "x" * (1 << 21)))


def test_a_shard_of_no_whole_number_of_ids_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.bin, byte 8: 10 bytes are no whole number of 4-byte ids"):
        read(write(tmp_path / "a.bin", b"0123456789"))


def test_a_file_that_is_no_parquet_or_lacks_the_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file"):
        read(write(tmp_path / "a.parquet", "hello there, this is text"))
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: no column that holds text; .* got 'body'"):
        read(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: no column 'text'; it has 'body'"):
        read(tmp_path / "b.parquet", record="text")
    good = tmp_path / "c.parquet"
    parquet.write_table(pa.table({"text": ["x" * 1000] * 1000}), good, compression="none", use_dictionary=False)
    data = bytearray(good.read_bytes())
    write(good, bytes(data[: len(data) // 2]))
    with pytest.raises(DataError, match=r"c\.parquet: not a Parquet file"):
        read(good)


def test_names_that_stand_for_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "data.csv", "x")
    for name, complaint in {
        str(tmp_path / "nope.txt"): r"nope\.txt does not exist",
        str(tmp_path / "*.jsonl"): r"no file matches '.*\*\.jsonl'",
        str(tmp_path / "empty"): r"the folder .*empty holds no data",
        str(tmp_path / "data.csv"): r"data\.csv: its ending tells no kind of data",
        "s3://bucket/x.jsonl": r"is not a local path",
        "hub:": r"hub: names no dataset",
        "builtin:shakespeare": r"is no built-in text; there is builtin:pydoc-topics",
    }.items():
        with pytest.raises(DataError, match=complaint):
            read(name)


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one")
    with pytest.raises(DataError, match=r"a\.txt is named twice"):
        read(path, tmp_path)
