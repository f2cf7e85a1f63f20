"""Where the settings of a capture come from, and what is refused with the flag and the remedy named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from stillhouse.capture.settings import CaptureSettings, flag_fields, load_settings
from stillhouse.cli.capture import capture
from stillhouse.data.spec import DataSpec
from stillhouse.errors import ConfigurationError

NEEDED = {"output_dir": "out", "teacher": "127.0.0.1:8001"}
DATA = {"sources": ["corpus"]}


def load(environment: dict[str, str] | None = None, **flags: Any) -> CaptureSettings:
    return load_settings({**NEEDED, **flags}, DATA, environment or {})


def test_the_defaults_are_fifty_draws_at_temperature_one_of_everything() -> None:
    settings = load()
    assert (settings.encoding, settings.temperature, settings.part) == ("sampled:50", 1.0, (0, 1))
    assert settings.output_dir == Path("out")
    assert settings.data == DataSpec(sources=("corpus",))


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    environment = {"CAPTURE_ENCODING": "hidden", "CAPTURE_TEMPERATURE": "2", "CAPTURE_PART": "1/3"}
    settings = load(environment, encoding="dense:f16")
    assert (settings.encoding, settings.temperature, settings.part) == ("dense:f16", 2.0, (1, 3))


def test_the_corpus_may_come_from_the_environment() -> None:
    environment = {"CAPTURE_DATA": "a.txt,b.txt", "CAPTURE_BLOCK_SIZE": "64", "CAPTURE_APPEND_EOS": "false"}
    settings = load_settings(NEEDED, {}, environment)
    assert settings.data == DataSpec(sources=("a.txt", "b.txt"), block_size=64, append_eos=False)


def test_the_token_is_no_flag_and_stands_in_no_text() -> None:
    settings = load({"CAPTURE_TEACHER_TOKEN": "still-water"})
    assert settings.teacher_token is not None
    assert settings.teacher_token.get_secret_value() == "still-water"
    assert "still-water" not in repr(settings)
    assert "teacher_token" not in dict(flag_fields())


def test_an_unknown_variable_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigurationError, match=r"CAPTURE_TEMPRATURE .* did you mean CAPTURE_TEMPERATURE"):
        load({"CAPTURE_TEMPRATURE": "2"})


def test_variables_that_a_platform_sets_for_a_service_are_left_alone() -> None:
    load({"CAPTURE_JOB_SERVICE_HOST": "10.0.0.1", "CAPTURE_JOB_PORT_80_TCP": "tcp://10.0.0.1:80"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"part": "3/3"}, r"part \(--part, CAPTURE_PART\): parts are counted from 0: of 3 the last is 2/3; got '3/3'"),
        ({"part": "1"}, "must be i/n, such as 0/4"),
        ({"part": "-1/2"}, "must be i/n"),
        ({"temperature": "0"}, r"temperature \(--temperature, CAPTURE_TEMPERATURE\).*greater than 0; got '0'"),
        ({"temperature": "inf"}, "temperature"),
        ({"encoding": "top_p:3"}, "encoding 'top_p:3' is not known"),
        ({"encoding": "candidates"}, "names no ids"),
        ({"teacher": "nowhere"}, "host:port; got 'nowhere'"),
        ({"teacher": None}, "teacher and model are both missing"),
        ({"model": "smollm2"}, "teacher and model are two teachers"),
        ({"dtype": "float32"}, "dtype has no effect without --model"),
        ({"teacher": None, "model": "smollm2", "teacher_ca": "ca.pem"}, "teacher_ca has no effect with --model"),
        ({"max_concurrent_requests": "0"}, r"max_concurrent_requests .*; got '0'"),
        ({"output_dir": None}, r"output_dir \(--output-dir, CAPTURE_OUTPUT_DIR\) is missing"),
    ],
)
def test_what_cannot_be_is_named_with_its_flag(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(**flags)


def test_a_corpus_that_is_missing_or_wrong_is_named_by_its_flag() -> None:
    with pytest.raises(ConfigurationError, match=r"data \(--data, CAPTURE_DATA\) is missing"):
        load_settings(NEEDED, {}, {})
    with pytest.raises(ConfigurationError, match=r"block_size \(--block-size, CAPTURE_BLOCK_SIZE\).*got 1"):
        load_settings(NEEDED, {**DATA, "block_size": 1}, {})


def test_the_help_names_every_flag_its_variable_and_its_default() -> None:
    app = typer.Typer()
    app.command()(capture)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1"}).output
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown).split())
    for name, info in flag_fields():
        assert f"--{name.replace('_', '-')}" in text
        assert f"CAPTURE_{name.upper()}" in text, name
        assert info.description, name
        if not info.is_required() and info.default is not None:
            default = "0/1, all" if name == "part" else info.default
            assert f"[CAPTURE_{name.upper()}; default: {default}]" in text, name
    for name in DataSpec.model_fields:
        assert f"--{'data' if name == 'sources' else name.replace('_', '-')}" in text
