"""Who may ask: bearer tokens, compared in constant time, deny by default once any is set.

Knows neither gRPC nor HTTP: both doors hand over the `authorization` header and what it should open.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, Self

from stillhouse.errors import ConfigurationError, PermissionDeniedError, UnauthenticatedError
from teacher_service.settings import TeacherSettings

Scope = Literal["teacher", "metrics"]

_SCHEME = "bearer "
_SHORTEST_TOKEN = 16


class Access:
    """The tokens of a service, kept as digests, each with what it opens: everything, or the metrics alone."""

    def __init__(self, tokens: tuple[str, ...] = (), scrape_token: str | None = None) -> None:
        self._all = tuple(map(_digest, tokens))
        self._metrics = () if scrape_token is None else (_digest(scrape_token),)

    @classmethod
    def from_settings(cls, settings: TeacherSettings) -> Self:
        """Read the tokens.

        Raises:
            ConfigurationError: one that could be guessed; it is not repeated.
        """
        tokens: tuple[str, ...] = ()
        if settings.tokens is not None:
            tokens = tuple(token.strip() for token in settings.tokens.get_secret_value().split(",") if token.strip())
        scrape = None if settings.scrape_token is None else settings.scrape_token.get_secret_value().strip()
        for name, values in (("TEACHER_TOKENS", tokens), ("TEACHER_SCRAPE_TOKEN", () if scrape is None else (scrape,))):
            if any(len(value) < _SHORTEST_TOKEN for value in values):
                raise ConfigurationError(f"{name} must hold tokens of at least {_SHORTEST_TOKEN} characters each")
        return cls(tokens, scrape)

    @property
    def is_open(self) -> bool:
        """Whether no token is set, so that everybody may ask."""
        return not (self._all or self._metrics)

    def check(self, authorization: str | None, scope: Scope) -> None:
        """Check what a caller sent.

        Raises:
            UnauthenticatedError: no token, or none of ours.
            PermissionDeniedError: a token of ours that opens something else.
        """
        if self.is_open:
            return
        if authorization is None or not authorization.lower().startswith(_SCHEME):
            raise UnauthenticatedError("a token is needed: send it in the header `authorization: Bearer TOKEN`")
        given = _digest(authorization[len(_SCHEME) :].strip())
        if _is_one_of(given, self._all):
            return
        if not _is_one_of(given, self._metrics):
            raise UnauthenticatedError("the token is unknown here")
        if scope != "metrics":
            raise PermissionDeniedError("this token opens the metrics alone")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _is_one_of(given: bytes, known: tuple[bytes, ...]) -> bool:
    # Each is compared, so that the time says nothing about which one it was.
    return sum(hmac.compare_digest(given, one) for one in known) > 0
