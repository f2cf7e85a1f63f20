"""What a log line shows of an error, and what it never shows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
import structlog

from stillhouse.logs import configure_logging, without_folders


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was logged."""
    return lambda: capsys.readouterr().err


def _fail(secret: str) -> None:
    hidden = secret * 2
    raise FileNotFoundError(f"no such file: '/srv/models/private/weights.bin' ({len(hidden)})")


def log_a_fault(logger: logging.Logger | structlog.stdlib.BoundLogger) -> None:
    try:
        _fail("hunter2")
    except FileNotFoundError:
        logger.exception("call_failed")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_without_stacks_an_error_is_told_by_name_and_place(log_format: str, written: Callable[[], str]) -> None:
    configure_logging("info", log_format, stacks=False)  # type: ignore[arg-type]  # one of the two
    log_a_fault(structlog.get_logger("ours"))
    log_a_fault(logging.getLogger("somebody.else"))
    text = written()
    assert text.count("FileNotFoundError") == 2
    assert text.count("weights.bin") == 2
    assert "test_logs._fail:" in text
    for hidden in ("Traceback", "/srv/models", "hunter2", __file__):
        assert hidden not in text


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_stack_shows_no_variables(log_format: str, written: Callable[[], str]) -> None:
    configure_logging("info", log_format)  # type: ignore[arg-type]  # one of the two
    log_a_fault(structlog.get_logger("ours"))
    text = written()
    assert "Traceback" in text
    assert "hunter2hunter2" not in text


def test_other_fields_stay_as_they_are(written: Callable[[], str]) -> None:
    configure_logging("info", "json", stacks=False)
    structlog.get_logger("ours").info("listening", http="http://127.0.0.1:8000", count=3, model="owner/name")
    line = json.loads(written())
    assert (line["http"], line["count"], line["model"]) == ("http://127.0.0.1:8000", 3, "owner/name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("open('/etc/ssl/private/key.pem')", "open('key.pem')"),
        ("https://host/a/b and host:80/a/b", "https://host/a/b and host:80/a/b"),
        ("/one", "/one"),
        ("kept 3/4 of a/b", "kept 3/4 of a/b"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, expected: str) -> None:
    assert without_folders(text) == expected
