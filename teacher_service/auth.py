"""Who may ask: bearer tokens, compared in constant time, deny by default once any is set.

Knows neither gRPC nor HTTP: both doors hand over the `authorization` header and what it should open. Nor does it know
where tokens come from: `token_sources` reads them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from stillhouse.errors import PermissionDeniedError, UnauthenticatedError
from stillhouse.pages.passes import find_token, make_pass

Scope = Literal["teacher", "metrics"]
"""What a token opens: `teacher` everything, `metrics` the figures and the detail of readiness alone."""

ANONYMOUS = "anonymous"
"""The name of every caller where no token is set."""

_SCHEME = "bearer "

PASS_SERVICE = "teacher"  # noqa: S105 - a name, no secret
"""What a pass is made for: one of another service opens nothing here."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token by its digest: whoever reads this process's log, or an object in it, learns nothing to call with.

    `name` is for logs and metrics; several tokens may share one, which is how a caller changes from an old token to a
    new one.
    """

    name: str
    digest: bytes = field(repr=False)
    scope: Scope = "teacher"

    @classmethod
    def of(cls, name: str, secret: str, scope: Scope = "teacher") -> Token:
        """Return the token whose secret is `secret`."""
        return cls(name, _digest(secret), scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as logs and metrics name them."""

    name: str


class Access:
    """The tokens of a service. They can be replaced while it runs: the next call is held to the new ones."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens = tuple(tokens)

    @property
    def is_open(self) -> bool:
        """Whether no token is set, so that everybody may ask."""
        return not self._tokens

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens in use."""
        return self._tokens

    def replace(self, tokens: Iterable[Token]) -> None:
        """Take these instead.

        Raises:
            ValueError: none; a service that asked for tokens never opens while it runs.
        """
        replacement = tuple(tokens)
        if not replacement and self._tokens:
            raise ValueError("tokens must hold at least one: a closed service is never opened while it runs")
        self._tokens = replacement

    def check(self, authorization: str | None, scope: Scope) -> Caller:
        """Return whoever sent this header.

        Raises:
            UnauthenticatedError: no token, or none of ours.
            PermissionDeniedError: a token of ours that opens something else.
        """
        if self.is_open:
            return Caller(ANONYMOUS)
        if authorization is None or not authorization.lower().startswith(_SCHEME):
            raise UnauthenticatedError("a token is needed: send it in the header `authorization: Bearer TOKEN`")
        return _may(self._token(authorization[len(_SCHEME) :].strip()), scope)

    def pass_for(self, secret: str) -> str:
        """Return the pass that whoever shows this token may keep instead of it.

        Raises:
            UnauthenticatedError: it is none of ours.
        """
        return make_pass(self._token(secret).digest, PASS_SERVICE)

    def check_pass(self, given: str | None, scope: Scope) -> Caller:
        """Return whoever shows this pass.

        Raises:
            UnauthenticatedError, PermissionDeniedError: as `check`; a pass ends with its token.
        """
        if self.is_open:
            return Caller(ANONYMOUS)
        tokens = self._tokens
        found = None if given is None else find_token(given, [token.digest for token in tokens], PASS_SERVICE)
        if found is None:
            raise UnauthenticatedError("a token is needed: show one at /")
        return _may(tokens[found], scope)

    def _token(self, secret: str) -> Token:
        given = _digest(secret)
        # Each is compared, so that the time says nothing about which one it was.
        matches = [token for token in self._tokens if hmac.compare_digest(given, token.digest)]
        if not matches:
            raise UnauthenticatedError("the token is unknown here")
        return matches[0]


def _may(token: Token, scope: Scope) -> Caller:
    if scope == "teacher" and token.scope != "teacher":
        raise PermissionDeniedError("this token opens the metrics alone")
    return Caller(token.name)


def _digest(secret: str) -> bytes:
    # A header can hold what UTF-8 cannot; no such text is a token of ours.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
