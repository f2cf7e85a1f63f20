"""Who may ask, and what for."""

from __future__ import annotations

import pytest

from stillhouse.errors import PermissionDeniedError, UnauthenticatedError
from teacher_service.auth import Access, Token

SCRAPE = Token.of("scraper", "scrape-token-0123456789", "metrics")
ACCESS = Access(
    [Token.of("first", "first-token-0123456789"), Token.of("second", "second-token-012345678"), SCRAPE],
)


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
        Access([SCRAPE]).check(None, "teacher")


def test_a_caller_is_known_by_the_name_of_the_token() -> None:
    assert ACCESS.check("Bearer second-token-012345678", "teacher").name == "second"
    assert Access().check("Bearer whatever-it-may-be", "teacher").name == "anonymous"


def test_replaced_tokens_hold_from_the_next_call_on() -> None:
    access = Access([Token.of("trainer", "old-token-0123456789")])
    access.replace([Token.of("trainer", "new-token-0123456789")])
    access.check("Bearer new-token-0123456789", "teacher")
    with pytest.raises(UnauthenticatedError):
        access.check("Bearer old-token-0123456789", "teacher")


def test_a_closed_service_is_never_opened() -> None:
    access = Access([SCRAPE])
    with pytest.raises(ValueError, match="never opened while it runs"):
        access.replace([])
    assert not access.is_open


def test_no_object_shows_a_token_or_its_digest() -> None:
    assert repr(SCRAPE) == "Token(name='scraper', scope='metrics')"
