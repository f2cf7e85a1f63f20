"""The name that one request has in every log it passes through: made by whoever asks first, and handed on.

It travels as `x-request-id`, in gRPC's metadata as in HTTP's headers. Knows nothing of either.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stillhouse.errors import TeacherError

REQUEST_ID_HEADER = "x-request-id"

# What other tools make (UUIDs, trace ids, pod names with numbers); it stands in logs, so nothing else may be in it.
_USABLE = re.compile(r"[A-Za-z0-9._:\-]{1,64}")

_current: ContextVar[str] = ContextVar("stillhouse_request_id", default="")


def new_request_id() -> str:
    """Return a name that no other request has."""
    return secrets.token_hex(8)


def usable_request_id(given: str | None) -> str:
    """Return the id that a caller sent where it can stand in a log, else a new one."""
    return given if given is not None and _USABLE.fullmatch(given) else new_request_id()


def current_request_id() -> str:
    """Return the id of the request that is being made here, "" outside of one."""
    return _current.get()


@contextmanager
def request_id(name: str | None = None) -> Iterator[str]:
    """Make requests of this name within the block: of yours, to find them in the teacher's log; else of a new one.

    Raises:
        ValueError: a name that no log should hold.
    """
    if name is not None and not _USABLE.fullmatch(name):
        raise ValueError(f"a request id has 1 to 64 letters, digits, dots, colons, dashes or underscores; got {name!r}")
    chosen = name or _current.get() or new_request_id()
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)


@contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """Say in a teacher's error which request it was an answer to."""
    try:
        yield
    except TeacherError as error:
        error.request_id = name
        raise
