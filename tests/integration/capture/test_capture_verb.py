"""What a capture keeps is what the teacher answers, of every encoding; and what it says and refuses."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trustme

from stillhouse import TeacherClient, open_store
from stillhouse.codec import encode_payload
from stillhouse.data.spec import DataSpec
from stillhouse.encoding_text import parse_encoding
from stillhouse.errors import StoreError
from stillhouse.providers import Answer
from stillhouse.request import All, Explicit, LogitsRequest, Sequence
from stillhouse.store import Store, StorePart, StoreWriter
from tests.integration.capture.conftest import DETERMINISTIC, Capture, files
from tests.torture.service_process import OwnProcess, ServiceProcess, serving


def parts(store: Store) -> Iterator[StorePart]:
    yield store.train
    assert store.held_out is not None
    yield store.held_out


def ask(client: TeacherClient, store: Store, part: StorePart, index: int) -> Answer:
    """Ask about a stored sample in words of the test's own."""
    row, plan = part[index], store.manifest.plan
    positions = tuple(row.mask.nonzero()[0].tolist())
    whole = len(positions) == len(row.token_ids)
    sequence = Sequence(
        tuple(row.token_ids.tolist()),
        tuple(row.segment_lengths) if len(row.segment_lengths) > 1 else (),
        All() if whole else Explicit(positions),
    )
    encoding = parse_encoding(plan.encoding)
    size = plan.vocabulary_size
    return client.answer(LogitsRequest((sequence,), encoding, plan.temperature, size, cache_mode="bypass"))


@pytest.mark.parametrize(
    ("encoding", "temperature"),
    [
        ("sampled", 1.0), ("sampled:8:3", 1.2), ("top_k:8", 1.0), ("top_k:4:f32", 2.0), ("dense:f32", 1.0),
        ("dense:bf16", 1.0), ("hidden", 1.0), ("hidden:f32", 1.0), ("candidates:3,17,40", 1.5), ("auto", 1.0),
    ],
)  # fmt: skip
def test_the_stored_bytes_are_the_answers_of_the_teacher(
    encoding: str, temperature: float, capture: Capture, capture_teacher: ServiceProcess, tmp_path: Path
) -> None:
    assert capture(tmp_path / "store", encoding=encoding, temperature=temperature) == 0
    store = open_store(tmp_path / "store")
    with TeacherClient(capture_teacher.grpc) as client:
        assert store.manifest.plan.teacher.fingerprint == client.describe().fingerprint
        for part in parts(store):
            assert len(part) > 1
            for index in range(0, len(part), 5):
                row, answer = part[index], ask(client, store, part, index)
                assert row.payload.num_positions == int(row.mask.sum())
                assert encode_payload(row.payload) == encode_payload(answer.payloads[0])
        head = store.output_head()
        assert (head is not None) == store.manifest.plan.encoding.startswith("hidden")
        if head is not None:
            assert torch.equal(head.weight, client.output_head().weight)
    assert any(not part[index].mask.all() for part in parts(store) for index in range(len(part)))
    store.close()


def test_what_is_stored_is_the_corpus_as_training_prepares_it(
    capture: Capture, corpus_flags: list[str], tiny_llama_folder: Path, tmp_path: Path
) -> None:
    from stillhouse.data import prepare
    from stillhouse.models import load_tokenizer

    assert capture(tmp_path / "store") == 0
    values = dict(flag.removeprefix("--").split("=", 1) for flag in corpus_flags)
    sources = tuple(flag.partition("=")[2] for flag in corpus_flags if flag.startswith("--data="))
    spec = DataSpec(sources=sources, text_separator=r"\n\n", block_size=32, held_out_samples=5)
    prepared = prepare(spec, load_tokenizer(tiny_llama_folder), values["cache-dir"])
    assert prepared.from_cache
    store = open_store(tmp_path / "store")
    for part, dataset in zip(parts(store), (prepared.train, prepared.held_out), strict=True):
        assert dataset is not None
        assert (part.fingerprint, len(part)) == (dataset.fingerprint, len(dataset))
        for index in range(len(part)):
            one, other = part.sample(index), dataset[index]
            assert one.segment_lengths == other.segment_lengths
            for name in ("token_ids", "labels", "mask"):
                assert getattr(one, name).tolist() == getattr(other, name).tolist()
    store.close()


def test_how_requests_are_cut_changes_no_byte(capture: Capture, tmp_path: Path) -> None:
    assert capture(tmp_path / "one", samples_per_shard=8) == 0
    bounds = {"max_request_tokens": 40, "max_concurrent_requests": 7, "max_held_bytes": 30_000}
    assert capture(tmp_path / "other", samples_per_shard=8, **bounds) == 0
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert not (tmp_path / "one" / "partial").exists()
    assert not (tmp_path / "one" / "capture.json").exists()


@pytest.mark.parametrize("encoding", ["sampled:50", "hidden"])
def test_a_finished_capture_run_again_says_so_and_touches_nothing(
    encoding: str, capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(tmp_path / "store", encoding=encoding) == 0
    before = files(tmp_path / "store")
    capsys.readouterr()
    assert capture(tmp_path / "store", encoding=encoding) == 0
    assert "was complete before" in capsys.readouterr().out
    # With nobody to ask, too: a job that is started again after its end must not fail for that.
    tokenizer = _tokenizer(tmp_path / "store")
    assert capture(tmp_path / "store", encoding=encoding, teacher="127.0.0.1:1", tokenizer=tokenizer) == 0
    assert files(tmp_path / "store") == before


def _tokenizer(store: Path) -> str:
    return str(json.loads((store / "manifest.json").read_text())["plan"]["teacher"]["model"])


@pytest.mark.parametrize(
    ("finished", "flags", "named"),
    [
        (False, {"encoding": "sampled:8"}, "encoding is 'sampled:50:0', not 'sampled:8:0'"),
        (False, {"temperature": 2.0}, "temperature is 1.0, not 2.0"),
        (False, {"block_size": 16}, "block_size is 32, not 16"),
        (False, {"part": "1/2"}, "holds share 0/1, not 1/2"),
        (False, {"samples_per_shard": 4}, "samples_per_shard"),
        (True, {"encoding": "top_k:4"}, "encoding is 'sampled:50:0', not 'top_k:4:f16'"),
        (True, {"part": "1/2"}, "holds share 0/1, not 1/2"),
    ],
)
def test_another_command_on_the_same_folder_is_refused_with_what_differs(
    finished: bool,
    flags: dict[str, object],
    named: str,
    capture: Capture,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "store"
    if not finished:
        _stop_in_the_middle(monkeypatch)
    assert capture(folder) == (0 if finished else 143)
    monkeypatch.undo()
    before = files(folder)
    capsys.readouterr()
    assert capture(folder, **flags) == 2
    assert named in capsys.readouterr().err
    assert files(folder) == before


def _stop_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.store import StoreWriter

    add, added = StoreWriter.add, []

    def stop(self: StoreWriter, *values: object) -> None:
        add(self, *values)  # type: ignore[arg-type]  # what was given
        added.append(values)
        if len(added) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "add", stop)


def test_a_capture_that_was_interrupted_goes_on_and_asks_for_nothing_twice(
    capture: Capture, capture_teacher: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert capture(tmp_path / "whole", samples_per_shard=4) == 0
    _stop_in_the_middle(monkeypatch)
    flags = {"samples_per_shard": 4, "max_request_tokens": 32, "max_concurrent_requests": 1}
    assert capture(tmp_path / "store", **flags) == 143
    monkeypatch.undo()
    asked = capture_teacher.metric("teacher_forward_tokens_total")
    assert capture(tmp_path / "store", **flags) == 0
    tokens = capture_teacher.metric("teacher_forward_tokens_total") - asked
    assert files(tmp_path / "store") == files(tmp_path / "whole")
    store = open_store(tmp_path / "store")
    there = 5 * 32
    left = sum(int(part.sample_lengths().sum()) for part in parts(store)) - there
    # So small a corpus is asked about whole by the question that tells the time, and one sample before that.
    assert left <= tokens <= 2 * left + 32
    store.close()


def test_a_teacher_in_throughput_mode_is_refused_unless_it_is_asked_for(
    tiny_llama_folder: Path, capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "service", tiny_llama_folder, "--dtype", "float32") as service:
        assert capture(tmp_path / "store", teacher=service.grpc) == 2
        said = capsys.readouterr().err
        assert "throughput mode" in said
        assert "--allow-nondeterministic" in said
        assert not (tmp_path / "store").exists()
        assert capture(tmp_path / "store", "--allow-nondeterministic", teacher=service.grpc) == 0
    store = open_store(tmp_path / "store")
    assert store.manifest.plan.teacher.mode == "throughput"
    store.close()


def test_tls_and_a_token_are_given_as_training_takes_them(
    tiny_llama_folder: Path,
    capture: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "teacher.crt")
    leaf.private_key_pem.write_to_path(tmp_path / "teacher.key")
    (tmp_path / "tokens").write_text("capturer 0123456789abcdef\n")
    flags = [*DETERMINISTIC, "--tokens-file", str(tmp_path / "tokens"), "--plain-port", "0"]
    flags += ["--tls-certificate", str(tmp_path / "teacher.crt"), "--tls-key", str(tmp_path / "teacher.key")]
    with serving(tmp_path / "service", tiny_llama_folder, *flags) as service:
        assert capture(tmp_path / "store", teacher=service.grpc, teacher_ca=tmp_path / "ca.pem") == 2
        assert "token" in capsys.readouterr().err
        monkeypatch.setenv("CAPTURE_TEACHER_TOKEN", "0123456789abcdef")
        assert capture(tmp_path / "store", teacher=service.grpc, teacher_ca=tmp_path / "ca.pem") == 0


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(tmp_path / "store", "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"size +about \d+\.\d bytes a token, .* are free", said)
    assert re.search(r"time +about [\d,]+ tokens a second, ", said)
    assert re.search(r"to capture +\d+ samples .*\(train \d+, held-out 5\): [\d,]+ tokens, [\d,]+ positions", said)
    assert not (tmp_path / "store").exists()


def test_a_dry_run_refuses_the_places_that_the_capture_would(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    assert capture(tmp_path / "file", "--dry-run") == 2
    assert "file is a file: name a folder" in capsys.readouterr().err
    assert capture(tmp_path, "--dry-run") == 2
    assert "is not empty and no store: it holds file" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert capture(Path("s3://bucket/store"), "--dry-run") == 2
    assert "a store is written to a local folder" in capsys.readouterr().err


def test_a_dry_run_over_a_begun_capture_says_what_is_left(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_by_one = {"max_request_tokens": 1, "max_concurrent_requests": 1}
    whole = int(re.search(r"to capture +(\d+) samples", _said(capture, capsys, tmp_path / "other", "--dry-run"))[1])  # type: ignore[index]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "add", _failing_after(StoreWriter.add, 7))
        assert capture(tmp_path / "store", **one_by_one) == 2
    capsys.readouterr()
    before = files(tmp_path / "store")
    left = int(re.search(r"to capture +(\d+) samples", _said(capture, capsys, tmp_path / "store", "--dry-run"))[1])  # type: ignore[index]
    assert left == whole - 7
    assert files(tmp_path / "store") == before


def _said(capture: Capture, capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert capture(*words) == 0
    return capsys.readouterr().out


def _failing_after(add: Any, count: int) -> Any:
    """Return a writer's `add` that the disk has no room for after so many answers."""
    done = itertools.count()

    def limited(self: StoreWriter, *values: Any) -> None:
        if next(done) >= count:
            raise StoreError("no room")
        add(self, *values)

    return limited


def test_what_it_took_is_about_what_was_said(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(tmp_path / "store", encoding="dense:f16") == 0
    said = capsys.readouterr().out
    before, after = (float(number) for number in re.findall(r"([\d.]+) bytes a token", said))
    assert 0.8 < before / after < 1.25


def test_a_folder_that_holds_something_else_is_left_alone(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert capture(tmp_path) == 2
    assert "not empty and no store" in capsys.readouterr().err
    assert files(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_disk_without_room_is_found_before_anything_is_written(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.capture.run.free_disk", lambda _: 1000)
    assert capture(tmp_path / "store") == 2
    assert "1000 bytes are free" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_an_address_where_nobody_answers_is_wrong_input(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(tmp_path / "store", teacher="127.0.0.1:1", teacher_wait_seconds=0.5) == 2
    assert "teacher_wait_seconds, 0.5 s" in capsys.readouterr().err


def test_a_corpus_that_is_not_there_is_told_before_a_teacher_is_waited_for(
    capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(tmp_path / "store", teacher="127.0.0.1:1", data=tmp_path / "nowhere.txt") == 2
    assert "nowhere.txt does not exist" in capsys.readouterr().err


def test_a_corpus_of_another_tokenizer_is_refused_with_the_first_id_that_differs(
    capture: Capture, tiny_llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for path in tiny_llama_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    swapped = {vocabulary["A"]: "B", vocabulary["B"]: "A"}
    spec["model"]["vocab"] = {swapped.get(index, token): index for token, index in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert capture(tmp_path / "store", tokenizer=folder) == 2
    assert "cannot be paired: token id" in capsys.readouterr().err


def test_a_teacher_for_the_occasion_gives_the_same_store_and_is_gone_after_it(
    capture: Capture, tiny_llama_folder: Path, corpus_flags: list[str], tmp_path: Path
) -> None:
    assert capture(tmp_path / "running") == 0
    argv = [sys.executable, "-m", "stillhouse", "capture", f"--output-dir={tmp_path / 'own'}", *corpus_flags]
    argv += [f"--model={tiny_llama_folder}", "--device=cpu", "--dtype=float32"]
    environment = {"OMP_NUM_THREADS": "1", "TEACHER_TORCH_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = OwnProcess(argv, tmp_path / "log", environment)
    assert process.ended(120) == 0, process.tail()
    assert files(tmp_path / "own") == files(tmp_path / "running")
    assert not list(tmp_path.glob("stillhouse-teacher-*"))


def test_a_teacher_that_cannot_be_started_is_told_by_its_own_last_words(
    corpus_flags: list[str], tiny_llama_folder: Path, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "stillhouse", "capture", f"--output-dir={tmp_path / 'own'}", *corpus_flags]
    argv += [f"--tokenizer={tiny_llama_folder}", f"--model={tiny_llama_folder}", "--device=cuda:77"]
    process = OwnProcess(argv, tmp_path / "log")
    assert process.ended(120) == 2, process.tail()
    assert "the teacher could not be started, exit code 2" in process.tail()
    assert not (tmp_path / "own").exists()
