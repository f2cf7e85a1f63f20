"""Every HTTP request passes here: its token, its place among those in flight, its body, its time, its count.

What it asks is read and answered in `routes`. When its caller goes away, whatever is done for it is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.errors import PermissionDeniedError, UnauthenticatedError
from teacher_service.admission import Admission
from teacher_service.http_door.bodies import Bodies, Body, CallerGone, header
from teacher_service.http_door.problems import problem_of
from teacher_service.http_door.streaming import NO_BODY
from teacher_service.metrics import Metrics

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""What needs no token."""

HELD = "stillhouse.held"
"""Where a scope keeps the exit stack of what is held until the answer has left."""

_COUNTED_PATHS = frozenset({*OPEN_PATHS, "/metrics", "/v1/teacher", "/v1/logits", "/v1/output-head", "/openapi.json"})

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
        *,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        self._bodies = Bodies(max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever else is asked of this server (websockets) is not spoken here."""
        if scope["type"] != "http":
            return
        if scope["method"] == "HEAD":
            # Answered as GET is; what body there is, the server below leaves out.
            scope = {**scope, "method": "GET", NO_BODY: True}
        started = time.monotonic()
        answer = _Answer(send)
        body = Body(scope, receive)
        try:
            await self._serve(scope, body, receive, answer)
        except CallerGone:
            answer.status = _CALLER_GONE
        except Exception as error:  # noqa: BLE001 - told to the caller, and logged where it is a fault
            await self._refuse(error, scope, body, answer)
        finally:
            # Names that a caller makes up must not become series.
            known = scope["path"] in _COUNTED_PATHS and scope["method"] in ("GET", "POST")
            method = f"{scope['method']} {scope['path']}" if known else "other"
            self._metrics.requests.labels(method, str(answer.status)).inc()
            self._metrics.request_duration.labels(method).observe(time.monotonic() - started)

    async def _serve(self, scope: Scope, body: Body, receive: Receive, answer: _Answer) -> None:
        async with self._admitted(scope), self._bodies.read(body) as data:
            gone = asyncio.ensure_future(_caller_gone(receive))
            work = asyncio.ensure_future(self._work(scope, data, gone, answer))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not (work.done() or answer.is_complete):
                    raise CallerGone
                await work
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work, gone})

    async def _work(self, scope: Scope, data: bytes, gone: asyncio.Future[None], answer: _Answer) -> None:
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                await asyncio.wait({gone})
                return {"type": "http.disconnect"}
            is_read = True
            return {"type": "http.request", "body": data, "more_body": False}

        async with AsyncExitStack() as held:
            await self._app({**scope, HELD: held}, replay, answer.send)

    @asynccontextmanager
    async def _admitted(self, scope: Scope) -> AsyncIterator[None]:
        """Hold the caller's place; health and metrics need none, so that they answer in any weather."""
        if scope["path"] in OPEN_PATHS:
            yield
        elif scope["path"] == "/metrics":
            self._admission.access.check(header(scope, "authorization"), "metrics")
            yield
        else:
            async with self._admission.admit(header(scope, "authorization")) as caller:
                with structlog.contextvars.bound_contextvars(caller=caller.name):
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


class _Answer:
    """What is sent for one request, and how far it has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self.has_begun = False
        self.is_complete = False

    async def send(self, message: Message) -> None:
        """Send on, as soon as the caller has room for it."""
        if message["type"] == "http.response.start":
            self.status, self.has_begun = message["status"], True
        else:
            self.is_complete = not message.get("more_body", False)
        await self._send(message)


async def _caller_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
