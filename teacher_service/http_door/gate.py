"""Every HTTP request passes here: its token, its place among those in flight, its body, its time, its count.

What it asks is read and answered in `routes`. When its caller goes away, whatever is done for it is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from types import TracebackType

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.errors import PermissionDeniedError, UnauthenticatedError
from stillhouse.pages.passes import cookie_of
from stillhouse.request_ids import REQUEST_ID_HEADER
from teacher_service.admission import Admission
from teacher_service.auth import Access, Caller
from teacher_service.auth import Scope as AccessScope
from teacher_service.http_door.bodies import Bodies, Body, CallerGone, header, headers_of
from teacher_service.http_door.problems import problem_of
from teacher_service.http_door.streaming import NO_BODY
from teacher_service.http_door.wire import wire_of
from teacher_service.metrics import Metrics
from teacher_service.page import paths
from teacher_service.request_notes import RequestNote, RequestNotes

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""What needs no token."""

HELD = "stillhouse.held"
"""Where a scope keeps the exit stack of what is held until the answer has left."""

# What is somebody's work, and worth a line where it is slow.
_WORKING_PATHS = frozenset({"/v1/teacher", "/v1/logits", "/v1/output-head", paths.ASK[1]})
_COUNTED_PATHS = frozenset({*OPEN_PATHS, *_WORKING_PATHS, *paths.PAGE_PATHS, "/metrics", "/openapi.json"})

# What proxies count such requests as; nobody sees it but the metrics.
_CALLER_GONE = 499

logger = structlog.get_logger(__name__)


class Gate:
    """Lets a request through to the application, or answers it with its problem."""

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        metrics: Metrics,
        notes: RequestNotes,
        bodies: Bodies,
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        # Methods and codes are few, and to look their counters up takes longer than to count.
        self._requests = cache(metrics.requests.labels)
        self._request_duration = cache(metrics.request_duration.labels)
        self._notes = notes
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever else is asked of this server (websockets) is not spoken here."""
        if scope["type"] != "http":
            return
        if scope["method"] == "HEAD":
            # Answered as GET is; what body there is, the server below leaves out.
            scope = {**scope, "method": "GET", NO_BODY: True}
        # Names that a caller makes up must not become series.
        known = scope["path"] in _COUNTED_PATHS and scope["method"] in ("GET", "POST")
        method = f"{scope['method']} {scope['path']}" if known else "other"
        given, is_work = header(scope, REQUEST_ID_HEADER), scope["path"] in _WORKING_PATHS
        with self._notes.taking(method, given, headers_of(scope), is_shown=is_work) as note:
            await self._answer(method, note, scope, receive, _Answer(send, note.request_id))

    async def _answer(self, method: str, note: RequestNote, scope: Scope, receive: Receive, answer: _Answer) -> None:
        started = time.monotonic()
        body = Body(scope, receive)
        try:
            await self._serve(scope, body, answer, note)
        except CallerGone:
            answer.status = _CALLER_GONE
        except Exception as error:  # noqa: BLE001 - told to the caller, and logged where it is a fault
            await self._refuse(error, scope, body, answer)
        finally:
            note.code = str(answer.status)
            self._requests(method, note.code).inc()
            self._request_duration(method).observe(time.monotonic() - started)

    async def _serve(self, scope: Scope, body: Body, answer: _Answer, note: RequestNote) -> None:
        async with self._admitted(scope, note), self._bodies.read(body) as data:
            with _WhileCallerIsThere(scope, answer):
                await self._work(scope, data, answer)

    async def _work(self, scope: Scope, data: bytes, answer: _Answer) -> None:
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                # Whoever asks again wants to know when the caller goes, which cancels all that is done for it.
                await asyncio.get_running_loop().create_future()
            is_read = True
            return {"type": "http.request", "body": data, "more_body": False}

        async with AsyncExitStack() as held:
            await self._app({**scope, HELD: held}, replay, answer.send)

    @asynccontextmanager
    async def _admitted(self, scope: Scope, note: RequestNote) -> AsyncIterator[None]:
        """Hold the caller's place; health, metrics and the page need none, so that they answer in any weather."""
        asked = (scope["method"], scope["path"])
        if scope["path"] in OPEN_PATHS or asked in paths.OPEN or asked == paths.HOME:
            yield
        elif scope["path"] == "/metrics" or asked == paths.LIVE:
            caller_of(self._admission.access, scope, "metrics")
            yield
        else:
            async with self._admission.admit(caller_of(self._admission.access, scope, "teacher")) as caller:
                note.caller = caller.name
                # A server gives each request a task, and so a context, of its own: nothing has to be unbound.
                structlog.contextvars.bind_contextvars(caller=caller.name)
                yield

    async def _refuse(self, error: Exception, scope: Scope, body: Body, answer: _Answer) -> None:
        if isinstance(error, UnauthenticatedError | PermissionDeniedError):
            self._metrics.refused.labels(type(error).__name__).inc()
        if answer.has_begun:
            # Half an answer is on its way: returning breaks the connection off, which is all that is left to say.
            logger.warning("answer_broken_off", reason=str(error))
            return
        problem = problem_of(error)
        if not await body.discard(self._bodies.max_discarded_bytes):
            problem.headers["connection"] = "close"
        await problem(scope, _nothing, answer.send)


def caller_of(access: Access, scope: Scope, wanted: AccessScope) -> Caller:
    """Return who asks: by a token or, on the page's own paths alone, by the pass that a browser keeps.

    Raises:
        UnauthenticatedError, PermissionDeniedError: as `Access.check`.
    """
    authorization = header(scope, "authorization")
    if authorization is None and scope["path"] in paths.PAGE_PATHS:
        return access.check_pass(cookie_of(header(scope, "cookie"), paths.COOKIE), wanted)
    return access.check(authorization, wanted)


class _WhileCallerIsThere:
    """Cancels a block when the caller goes away before its answer is complete; then raises `CallerGone`."""

    def __init__(self, scope: Scope, answer: _Answer) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server answers in tasks
        self._task = task
        self._watchers = wire_of(scope).watchers
        self._answer = answer
        self._is_gone = False
        self._cancelling = task.cancelling()

    def __enter__(self) -> None:
        self._watchers.add(self._leave)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchers.discard(self._leave)
        # As asyncio's own timeouts do: a cancellation that others have asked for as well is theirs.
        if self._is_gone and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise CallerGone from error

    def _leave(self) -> None:
        if not self._answer.is_complete:
            self._is_gone = True
            self._task.cancel()


class _Answer:
    """What is sent for one request, and how far it has come."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 500
        self.has_begun = False
        self.is_complete = False

    async def send(self, message: Message) -> None:
        """Send on, as soon as the caller has room for it."""
        if message["type"] == "http.response.start":
            self.status, self.has_begun = message["status"], True
            named = (REQUEST_ID_HEADER.encode(), self._request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), named]}
        else:
            self.is_complete = not message.get("more_body", False)
        await self._send(message)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
