"""What a capture is said to take, and a disk on which it would not end."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.asking import Asking
from stillhouse.capture.checked import Checked
from stillhouse.capture.probe import Probe, check_disk, make_estimate, take_probe
from stillhouse.capture.progress import shown_seconds
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled
from stillhouse.errors import ConfigurationError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from tests.unit.store.small_store import VOCABULARY, plan_of, small_corpus

TEACHER = FixtureTeacher(VOCABULARY)


def checked(folder: Path, encoding: Encoding) -> Checked:
    corpus = small_corpus(folder)
    plan = plan_of(corpus, encoding)
    asking = Asking(encoding, 1.0, VOCABULARY, TEACHER.describe().fingerprint)
    return Checked(corpus[0], TEACHER.describe(), asking, plan)


def test_a_probe_asks_past_the_cache_and_about_little(tmp_path: Path) -> None:
    capture = checked(tmp_path, Sampled(8))
    seen: list[LogitsRequest] = []

    def ask(request: LogitsRequest) -> Answer:
        seen.append(request)
        return TEACHER.answer(request)

    train = capture.prepared.train
    probe = take_probe(capture, train, range(len(train)), ask)
    assert [request.cache_mode for request in seen] == ["bypass", "bypass"]
    assert seen[0].num_tokens <= seen[1].num_tokens <= 1024
    assert probe.tokens_per_second > 0
    assert 1 < probe.sample_bytes < 30
    assert 1 < probe.answer_bytes < 50


def test_a_dense_probe_measures_about_the_bytes_of_its_values(tmp_path: Path) -> None:
    capture = checked(tmp_path, Dense("float32"))
    train = capture.prepared.train
    probe = take_probe(capture, train, range(len(train)), TEACHER.answer)
    assert 4 * VOCABULARY <= probe.payload_bytes <= 4 * VOCABULARY + 48


def test_an_estimate_counts_what_is_left_of_each_part(tmp_path: Path) -> None:
    capture = checked(tmp_path, Hidden("float32"))
    train, held_out = capture.prepared.train, capture.prepared.held_out
    assert held_out is not None
    probe = Probe(sample_bytes=2, answer_bytes=8, payload_bytes=9, tokens_per_second=100)
    whole = make_estimate(capture, {train: len(train), held_out: len(held_out)}, probe)
    lengths = int(train.sample_lengths().sum() + held_out.sample_lengths().sum())
    assert (whole.samples, whole.tokens) == (len(train) + len(held_out), lengths)
    assert whole.positions == train.part.num_learnt + held_out.part.num_learnt
    assert whole.head_bytes == VOCABULARY * TEACHER.describe().hidden_size * 4
    assert whole.num_bytes == 2 * lengths + 8 * whole.positions + whole.head_bytes
    assert whole.seconds == lengths / 100
    half = make_estimate(capture, {train: len(train) // 2, held_out: 0}, probe)
    assert half.tokens < whole.tokens / 2 + 16


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path: Path) -> None:
    capture = checked(tmp_path, Sampled(8))
    train = capture.prepared.train
    estimate = make_estimate(capture, {train: len(train)}, Probe(2, 8, 9, 100))
    check_disk(estimate, estimate.disk_bytes, "out")
    with pytest.raises(ConfigurationError, match=r"output_dir out: .* KiB on the disk, and .* are free"):
        check_disk(estimate, estimate.disk_bytes - 1, "out")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (200_000, "2 days 7 h")],
)
def test_times_are_shown_as_people_say_them(seconds: float, text: str) -> None:
    assert shown_seconds(seconds) == text
