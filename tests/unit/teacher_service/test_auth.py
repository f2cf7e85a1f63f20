"""Who may ask, and what for."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from stillhouse.errors import ConfigurationError, PermissionDeniedError, UnauthenticatedError
from teacher_service.auth import Access
from teacher_service.settings import TeacherSettings

ACCESS = Access(("first-token-0123456789", "second-token-012345678"), scrape_token="scrape-token-0123456789")


def test_without_any_token_everybody_may_ask() -> None:
    assert Access().is_open
    Access().check(None, "teacher")


@pytest.mark.parametrize("header", ["Bearer first-token-0123456789", "bearer  second-token-012345678 "])
def test_each_token_opens_everything(header: str) -> None:
    ACCESS.check(header, "teacher")
    ACCESS.check(header, "metrics")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer first-token", "Basic Zmlyc3Q6"])
def test_without_a_known_token_nothing_is_open(header: str | None) -> None:
    for scope in ("teacher", "metrics"):
        with pytest.raises(UnauthenticatedError) as refusal:
            ACCESS.check(header, scope)
        assert "first-token" not in str(refusal.value)


def test_the_scrape_token_opens_the_metrics_alone() -> None:
    header = "Bearer scrape-token-0123456789"
    ACCESS.check(header, "metrics")
    with pytest.raises(PermissionDeniedError):
        ACCESS.check(header, "teacher")


def test_a_scrape_token_alone_closes_the_rest() -> None:
    with pytest.raises(UnauthenticatedError):
        Access(scrape_token="scrape-token-0123456789").check(None, "teacher")


def test_several_tokens_are_read_and_short_ones_refused() -> None:
    settings = TeacherSettings(backend="fixture", tokens=SecretStr("a" * 16 + ", " + "b" * 16))
    Access.from_settings(settings).check("Bearer " + "b" * 16, "teacher")
    with pytest.raises(ConfigurationError, match="TEACHER_TOKENS must hold tokens of at least 16") as refusal:
        Access.from_settings(TeacherSettings(backend="fixture", tokens=SecretStr("hunter2")))
    assert "hunter2" not in str(refusal.value)
