"""Tokens from the environment and from a file: what is read, what is refused, and that no message shows one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from stillhouse.errors import ConfigurationError
from teacher_service.auth import Token
from teacher_service.settings import TeacherSettings
from teacher_service.token_sources import parse_tokens, tokens_of

A, B, C = "a" * 16, "b" * 32, "c-token/with+signs=="


def settings(**values: object) -> TeacherSettings:
    return TeacherSettings(backend="fixture", **values)  # type: ignore[arg-type]  # a test's shorthand


def test_a_file_names_tokens_with_their_scopes() -> None:
    text = f"# who may ask\n\ntrainer  {A}\n  prometheus\t{B} metrics\r\ncapture {C} teacher\n"
    assert parse_tokens(text, "file") == (
        Token.of("trainer", A),
        Token.of("prometheus", B, "metrics"),
        Token.of("capture", C),
    )


def test_a_word_alone_is_a_token_named_for_its_line() -> None:
    assert parse_tokens(f"{A}\n\n{B}\n", "file") == (Token.of("line-1", A), Token.of("line-3", B))


def test_tokens_without_a_name_are_callers_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{B}\n")
    found = tokens_of(settings(tokens=SecretStr(A), tokens_file=tmp_path / "tokens"))
    assert len({token.name for token in found}) == 2


def test_two_tokens_of_one_name_are_a_token_being_changed() -> None:
    assert [token.name for token in parse_tokens(f"trainer {A}\ntrainer {B}\n", "file")] == ["trainer", "trainer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file holds no token"),
        ("# nothing\n\n", "file holds no token"),
        ("trainer hunter2-secret\n", "file, line 1: a token must have at least 16 characters"),
        (
            f"x {A}\ntrainer hunter2-secret-hunter2 everything\n",
            "file, line 2: the scope must be one of teacher, metrics",
        ),
        ("trainer hunter2-secret-hunter2 teacher now\n", r"file, line 1: expected NAME TOKEN \[SCOPE\]; got 4 words"),
        ("hunter2/secret-hunter2 trainer\n", "file, line 1: the name must be"),
        ("trainer hunter2-secret-hünter2\n", "file, line 1: a token must be visible ASCII"),
        ("one hunter2-secret-hunter2\ntwo hunter2-secret-hunter2\n", "one token stands twice, as one and as two"),
    ],
)
def test_a_line_that_is_no_token_is_named_by_its_number_alone(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refusal:
        parse_tokens(text, "file")
    assert "hunter2" not in str(refusal.value)


def test_the_environment_and_the_file_add_up(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"\ufefftrainer {C}\n", encoding="utf-8")
    found = tokens_of(settings(tokens=SecretStr(f"{A}, {B},"), scrape_token=SecretStr("s" * 20), tokens_file=file))
    assert [(token.name, token.scope) for token in found] == [
        ("token-1", "teacher"),
        ("token-2", "teacher"),
        ("scraper", "metrics"),
        ("trainer", "teacher"),
    ]


def test_tokens_that_hold_none_are_refused_rather_than_open_to_all() -> None:
    with pytest.raises(ConfigurationError, match="TEACHER_TOKENS holds no token"):
        tokens_of(settings(tokens=SecretStr(" , ")))


def test_a_guessable_token_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigurationError, match="TEACHER_TOKENS: a token must have at least 16") as refusal:
        tokens_of(settings(tokens=SecretStr("hunter2")))
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"x" * (2**20 + 1), "more than 1048576"),
    ],
)
def test_a_file_that_is_no_list_of_tokens_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        tokens_of(settings(tokens_file=file))


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokens")
    with pytest.raises(ConfigurationError, match=r"tokens_file: .*tokens is no regular file"):
        tokens_of(settings(tokens_file=tmp_path / "tokens"))
