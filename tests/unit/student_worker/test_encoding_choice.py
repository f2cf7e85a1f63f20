"""What a run asks for: the smallest exact answer by itself, and what its teacher cannot give is refused at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from structlog.testing import capture_logs

from stillhouse.encoding_choice import auto_encoding
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError, EncodingNotOfferedError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.request import TeacherDescription
from student_worker.kept_mass import KeptMass
from student_worker.recipe.encoding_choice import canonical, check_text, choose_encoding, warn_of_noise

TEACHER = FixtureTeacher(100).describe()


def teacher(compute_dtype: str = "float32", hidden_size: int = 16, *, hidden: bool = True) -> TeacherDescription:
    encodings = (Dense, Hidden) if hidden else (Dense,)
    return replace(TEACHER, compute_dtype=compute_dtype, hidden_size=hidden_size, encodings=encodings)


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        (teacher("float32"), Hidden("float32")),
        (teacher("bfloat16"), Hidden("bfloat16")),
        (teacher("float16"), Hidden("float32")),
        (teacher("float32", hidden=False), Dense("float32")),
        (teacher("bfloat16", hidden=False), Dense("bfloat16")),
        (teacher("float16", hidden=False), Dense("float16")),
        (teacher("float32", hidden_size=100), Dense("float32")),
    ],
)
def test_auto_is_the_smallest_that_loses_nothing(offer: TeacherDescription, expected: Encoding) -> None:
    assert auto_encoding(offer, 100) == expected
    assert choose_encoding("encoding", "auto", offer, 100) == expected
    assert choose_encoding("eval_encoding", "auto", offer, 100) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("top_k:5", TopK(5)), ("sampled:9:3", Sampled(9, 3)), ("candidates:3,7:f16", Candidates((3, 7), "float16"))],
)
def test_what_is_named_is_asked_for(text: str, expected: Encoding) -> None:
    assert choose_encoding("encoding", check_text(text), TEACHER, 100) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top_k:101", "this teacher's limit is 100 ids"),
        ("sampled:70000", "this teacher's limit is 4096 draws"),
        ("candidates:3,100", "ids must be below the shared vocabulary 100"),
    ],
)
def test_what_is_over_a_limit_is_refused_by_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"encoding '{text}'.*{message}"):
        choose_encoding("encoding", text, TEACHER, 100)


def test_what_is_not_offered_or_cannot_be_used_is_refused() -> None:
    with pytest.raises(EncodingNotOfferedError, match="encoding 'hidden': this teacher offers Dense"):
        choose_encoding("encoding", "hidden", teacher(hidden=False), 100)
    with pytest.raises(ConfigurationError, match="eval_encoding 'sampled:50' does not tell the teacher's first choice"):
        choose_encoding("eval_encoding", "sampled:50", TEACHER, 100)
    for text in ("candidates", "candidates::f16"):
        with pytest.raises(ConfigurationError):
            check_text(text)


def test_two_ways_to_write_the_same_are_the_same() -> None:
    assert canonical("top_k:5") == canonical("top_k:5:float16")
    assert canonical("auto") != canonical("dense")


@pytest.mark.parametrize(("temperature", "warns"), [(1.0, False), (2.0, True)])
def test_draws_at_a_high_temperature_are_warned_of(temperature: float, warns: bool) -> None:
    with capture_logs() as logs:
        warn_of_noise(Sampled(50), temperature)
        warn_of_noise(TopK(50), temperature)
    assert [entry["event"] for entry in logs] == ["draws_are_mostly_noise"] * warns


def test_little_kept_mass_is_said_once() -> None:
    payloads = FixtureTeacher(100).logits([[1, 2, 3]], encoding=TopK(2), temperature=4.0)
    with capture_logs() as logs:
        watch = KeptMass()
        watch.see(())
        watch.see(payloads)
        watch.see(payloads)
    (entry,) = logs
    # exp(10 / 4) beside 99 others of weight 1, of which one is named.
    weight = torch.tensor(2.5).exp()
    assert entry["event"] == "answers_keep_little"
    assert entry["kept_mass"] == pytest.approx(float((weight + 1) / (weight + 99)), abs=1e-3)


def test_enough_kept_mass_is_no_news() -> None:
    with capture_logs() as logs:
        KeptMass().see(FixtureTeacher(100).logits([[1, 2, 3]], encoding=TopK(2), temperature=1.0))
    assert logs == []
