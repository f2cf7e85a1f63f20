"""The calls of the contract over HTTP for asyncio: each runs in a thread, and is broken off when nobody waits for it.

A thread reads an answer straight into the memory that it will lie in, which an event loop's streams do not.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from stillhouse.answer_messages import RawAnswer
from stillhouse.calls import Metadata
from stillhouse.cutting import Part
from stillhouse.errors import TeacherUnavailableError
from stillhouse.head_exchange import HeadReader
from stillhouse.http_calls import HttpCalls
from stillhouse.http_connection import Ongoing
from stillhouse.payloads import OutputHead
from stillhouse.retries import LEAST_TIMEOUT_SECONDS
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

_R = TypeVar("_R")

# Calls of one client at once; further ones wait, within their time, for a thread.
_MAX_THREADS = 64


class AsyncHttpCalls:
    """Calls to one teacher, in one event loop."""

    def __init__(self, address: str, context: ssl.SSLContext | None) -> None:
        """Name a teacher, as for `HttpCalls`."""
        self._calls = HttpCalls(address, context)
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="teacher")

    async def describe(self, *, include_tokens: bool, seconds: float, metadata: Metadata) -> pb.GetTeacherResponse:
        """Ask what is served."""
        return await self._run(partial(self._calls.describe, include_tokens=include_tokens, metadata=metadata), seconds)

    async def answer(self, part: Part, *, seconds: float, metadata: Metadata) -> RawAnswer:
        """Ask about a part of a request."""
        return await self._run(partial(self._calls.answer, part, metadata=metadata), seconds)

    async def output_head(self, reader: HeadReader, *, seconds: float, metadata: Metadata) -> OutputHead:
        """Fetch the output head."""
        return await self._run(partial(self._calls.output_head, reader, metadata=metadata), seconds)

    async def close(self) -> None:
        """Close the connections; calls under way fail."""
        self._is_closed = True
        self._calls.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: Callable[..., _R], seconds: float) -> _R:
        deadline = time.monotonic() + seconds
        ongoing = Ongoing()

        def work() -> _R:
            # What it has waited for a thread is of its time too.
            return call(seconds=max(deadline - time.monotonic(), LEAST_TIMEOUT_SECONDS), ongoing=ongoing)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            ongoing.give_up()
            if self._is_closed and not _is_cancelled():
                raise TeacherUnavailableError("the client was closed before the call began") from None
            raise


def _is_cancelled() -> bool:
    """Return whether it is the task that was cancelled, rather than what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
