"""The page's routes. Who may see them is the gate's matter, but for `/`, which answers whoever may not with a form."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from stillhouse.pages.answers import PAGE_HEADERS
from stillhouse.pages.attempts import Attempts
from stillhouse.pages.forms import add_static, form_of
from stillhouse.pages.passes import PASS_SECONDS, set_cookie
from stillhouse.pages.rendering import Pages
from student_worker.page.access import COOKIE, Access
from student_worker.page.page import RunPage

# A token has a few dozen characters.
_MAX_FORM_BYTES = 4096


class PageRoutes:
    """The page of one worker."""

    def __init__(self, page: RunPage, access: Access) -> None:
        self._page = page
        self._access = access
        self._pages = Pages("student_worker.page", "student")
        self._attempts = Attempts()

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(include_in_schema=False)
        router.get("/")(self.home)
        router.get("/page/live")(self.live)
        router.post("/page/voice")(self.voice)
        router.post("/page/enter")(self.enter)
        router.post("/page/leave")(self.leave)
        add_static(router)
        return router

    async def home(self, request: Request) -> Response:
        """The page, or the form that asks for a token."""
        if not self._access.admits(request):
            return self._form(401)
        self._page.listen()
        return self._html("student.html", can_leave=not self._access.is_open, **self._page.view())

    async def live(self) -> Response:
        """The parts of the page that change."""
        self._page.listen()
        return self._html("live.html", **self._page.view())

    async def voice(self, request: Request) -> Response:
        """Ask the student to speak after this step."""
        await form_of(request, _MAX_FORM_BYTES)
        self._page.listen(now=True)
        return RedirectResponse("/#voice-title", 303, PAGE_HEADERS)

    async def enter(self, request: Request) -> Response:
        """Give whoever shows the token a pass, and take them to the page."""
        address = request.client.host if request.client else ""
        wait = self._attempts.wait_seconds(address)
        if wait:
            answer = self._form(429, f"Too many wrong tokens from here; try again in {wait:.0f} s.")
            answer.headers["retry-after"] = f"{max(1.0, wait):.0f}"
            return answer
        form = await form_of(request, _MAX_FORM_BYTES)
        redirect = RedirectResponse("/", 303, PAGE_HEADERS)
        if self._access.is_open:
            return redirect
        given = self._access.pass_for(form.get("token", "").strip())
        if given is None:
            self._attempts.failed(address)
            return self._form(401, "That token is unknown here.")
        redirect.headers["set-cookie"] = set_cookie(COOKIE, given, secure=request.url.scheme == "https")
        return redirect

    async def leave(self, request: Request) -> Response:
        """Take the pass back."""
        await form_of(request, _MAX_FORM_BYTES)
        answer = RedirectResponse("/", 303, PAGE_HEADERS)
        answer.headers["set-cookie"] = set_cookie(COOKIE, "", secure=request.url.scheme == "https", seconds=0)
        return answer

    def _form(self, status: int, refusal: str = "") -> Response:
        return self._html("enter.html", status, refusal=refusal, hours=PASS_SECONDS // 3600)

    def _html(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._pages.render(template, **values), status, PAGE_HEADERS)
