"""Who may see a worker's metrics and page: everybody, or whoever has the token that `http_token` sets.

Health needs none. A person shows the token once and gets a pass (see `stillhouse.pages.passes`); a scraper sends it
with each request. Knows nothing of what is behind it.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from stillhouse.pages.answers import STATIC_TYPES
from stillhouse.pages.passes import cookie_of, find_token, make_pass

SERVICE = "student"
COOKIE = "stillhouse_student"

OPEN_PATHS = frozenset(
    {"/livez", "/readyz", "/page/enter", "/page/leave", *(f"/page/static/{n}" for n in STATIC_TYPES)}
)
"""What needs no token. `/` asks by itself: what it says without one is a form."""

PASS_PATHS = frozenset({"/", "/page/live", "/page/voice"})
"""What a pass opens; the rest takes the token alone."""

_SCHEME = "bearer "


class Access:
    """The one token of a worker, by its digest; None is open to all."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token)

    @property
    def is_open(self) -> bool:
        """Whether no token is set."""
        return self._digest is None

    def pass_for(self, token: str) -> str | None:
        """Return the pass for whoever shows the token; None for another one."""
        if self._digest is None or not hmac.compare_digest(_digest(token), self._digest):
            return None
        return make_pass(self._digest, SERVICE)

    def admits(self, request: Request) -> bool:
        """Tell whether a request may be answered."""
        if self._digest is None:
            return True
        authorization = request.headers.get("authorization")
        if authorization is not None:
            is_bearer = authorization.lower().startswith(_SCHEME)
            given = _digest(authorization[len(_SCHEME) :].strip())
            return hmac.compare_digest(given, self._digest) and is_bearer
        given_pass = cookie_of(request.headers.get("cookie"), COOKIE)
        is_passable = request.url.path in PASS_PATHS and given_pass is not None
        return is_passable and find_token(given_pass or "", [self._digest], SERVICE) is not None


class Gate:
    """Denies by default, once a token is set."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer that a token is needed."""
        if scope["type"] == "http":
            request = Request(scope)
            is_open = request.url.path in OPEN_PATHS or request.url.path == "/"
            if not is_open and not self._access.admits(request):
                detail = "a token is needed: send it in the header `authorization: Bearer TOKEN`"
                await JSONResponse({"detail": detail}, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
