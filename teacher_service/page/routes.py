"""The page's routes: each reads a form or nothing, and answers with HTML.

Who may ask is the gate's matter, but for `/`, which answers whoever may not with a form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from stillhouse.errors import InvalidRequestError, PermissionDeniedError, TeacherError, UnauthenticatedError
from stillhouse.pages.answers import PAGE_HEADERS
from stillhouse.pages.attempts import Attempts
from stillhouse.pages.forms import add_static, form_of
from stillhouse.pages.passes import PASS_SECONDS, cookie_of, set_cookie
from stillhouse.pages.rendering import Pages
from stillhouse.token_texts import TokenTexts
from teacher_service.auth import Access
from teacher_service.http_door.requests import KINDS
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.page import paths
from teacher_service.page.distribution import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    MAX_CHARACTERS,
    MAX_TOKENS,
    Position,
    distributions,
)
from teacher_service.page.health import Health
from teacher_service.page.history import History
from teacher_service.request_notes import RequestNotes
from teacher_service.settings import TeacherSettings

_EXAMPLE = "The for statement is used to iterate over the elements of a sequence"
_FIXTURE_EXAMPLE = "1 2 3 5 8"


@dataclass(slots=True)
class Asked:
    """What was typed, and what came of it."""

    text: str = ""
    temperature: float = 1.0
    positions: list[Position] = field(default_factory=list)
    refusal: str = ""
    status: int = 200


class PageRoutes:
    """The page of one service; for one event loop."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        metrics: Metrics,
        access: Access,
        settings: TeacherSettings,
        notes: RequestNotes,
        history: History,
    ) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._access = access
        self._settings = settings
        self._notes = notes
        self._history = history
        self._health = Health(lifecycle, metrics, access, settings, history)
        self._pages = Pages("teacher_service.page", "teacher")
        self._attempts = Attempts()
        self._tokens: TokenTexts | None = None

    def router(self) -> APIRouter:
        """Return the routes; they are for people, and no part of the described interface."""
        router = APIRouter(redirect_slashes=False, include_in_schema=False)
        router.get(paths.HOME[1])(self.home)
        router.get(paths.LIVE[1])(self.live)
        router.post(paths.ASK[1])(self.ask)
        router.post("/page/enter")(self.enter)
        router.post("/page/leave")(self.leave)
        add_static(router)
        return router

    async def home(self, request: Request) -> Response:
        """The page, or the form that asks for a token."""
        try:
            self._check(request)
        except UnauthenticatedError:
            return self._form(401)
        return self._page(request, Asked())

    async def live(self) -> Response:
        """The parts of the page that change."""
        return self._html("live.html", **self._view())

    async def ask(self, request: Request) -> Response:
        """The box with its answer: alone where a script has asked, else within the page."""
        form = await form_of(request, self._settings.max_http_body_bytes)
        asked = Asked(form.get("text", ""))
        try:
            asked.temperature = _number("temperature", form.get("temperature", "1"))
            teacher = self._lifecycle.teacher
            asked.positions = await distributions(teacher, self._token_texts(), asked.text, asked.temperature)
        except TeacherError as error:
            asked.refusal, asked.status = str(error), error.http_status
        if "x-part" in request.headers:
            return self._html("answer.html", asked.status, asked=asked)
        return self._page(request, asked)

    async def enter(self, request: Request) -> Response:
        """Give whoever shows a token a pass, and take them to the page."""
        address = request.client.host if request.client else ""
        wait = self._attempts.wait_seconds(address)
        if wait:
            self._metrics.shed.labels("page_attempts").inc()
            answer = self._form(429, f"Too many wrong tokens from here; try again in {wait:.0f} s.")
            answer.headers["retry-after"] = f"{wait:.0f}"
            return answer
        form = await form_of(request, self._settings.max_http_body_bytes)
        answer = RedirectResponse("/", 303, PAGE_HEADERS)
        if self._access.is_open:
            return answer
        try:
            given = self._access.pass_for(form.get("token", "").strip())
        except UnauthenticatedError as error:
            self._attempts.failed(address)
            self._metrics.refused.labels(type(error).__name__).inc()
            return self._form(401, "That token is unknown here.")
        answer.headers["set-cookie"] = set_cookie(paths.COOKIE, given, secure=request.url.scheme == "https")
        return answer

    async def leave(self, request: Request) -> Response:
        """Take the pass back."""
        await form_of(request, self._settings.max_http_body_bytes)
        answer = RedirectResponse("/", 303, PAGE_HEADERS)
        is_secure = request.url.scheme == "https"
        answer.headers["set-cookie"] = set_cookie(paths.COOKIE, "", secure=is_secure, seconds=0)
        return answer

    def _check(self, request: Request) -> None:
        authorization = request.headers.get("authorization")
        if authorization is not None:
            self._access.check(authorization, "metrics")
        else:
            self._access.check_pass(cookie_of(request.headers.get("cookie"), paths.COOKIE), "metrics")

    def _may_ask(self, request: Request) -> bool:
        try:
            if (authorization := request.headers.get("authorization")) is not None:
                self._access.check(authorization, "teacher")
            else:
                self._access.check_pass(cookie_of(request.headers.get("cookie"), paths.COOKIE), "teacher")
        except PermissionDeniedError:
            return False
        return True

    def _page(self, request: Request, asked: Asked) -> Response:
        is_ready = self._lifecycle.phase == "ready"
        example = _FIXTURE_EXAMPLE if self._settings.backend == "fixture" else _EXAMPLE
        return self._html(
            "teacher.html",
            asked.status,
            asked=asked,
            example=example,
            can_ask=is_ready and self._may_ask(request),
            can_leave=not self._access.is_open,
            temperatures=(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE),
            most=(MAX_CHARACTERS, MAX_TOKENS),
            **self._view(),
        )

    def _view(self) -> dict[str, Any]:
        is_ready = self._lifecycle.phase == "ready"
        description = self._lifecycle.teacher.description if is_ready else None
        return {
            "phase": self._lifecycle.phase,
            "progress": str(self._lifecycle.progress),
            "description": description,
            "encodings": [KINDS[one] for one in description.encodings] if description else [],
            "model": description.model if description else self._settings.model or self._settings.backend,
            "parts": self._health.parts(),
            "rates": self._history.rates(),
            "recent": self._history.over(15.0),
            "minutes": self._history.over(600.0),
            "slowest": self._notes.slowest(),
        }

    def _form(self, status: int, refusal: str = "") -> Response:
        return self._html("enter.html", status, refusal=refusal, hours=PASS_SECONDS // 3600)

    def _html(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._pages.render(template, **values), status, PAGE_HEADERS)

    def _token_texts(self) -> TokenTexts:
        if self._tokens is None:
            self._tokens = TokenTexts(self._lifecycle.teacher.description.tokens)
        return self._tokens


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequestError(f"{name} must be a number; got {text[:20]!r}") from None
