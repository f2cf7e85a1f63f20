"""How a service logs: events as JSON lines, or readable on a terminal; always to stderr.

Lines of other libraries (uvicorn, transformers) go the same way. For a whole process, set once by its entry point.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from types import TracebackType
from typing import Any, Literal

import structlog

LogFormat = Literal["auto", "json", "text"]
"""`auto` is text on a terminal, JSON elsewhere."""

# Where an error arose is told by its last frames.
_MOST_FRAMES = 8

# An absolute path of two parts or more, but for its last part; what follows a colon or a slash is of an address.
_FOLDERS = re.compile(r"(?<![\w:/.\-])/(?:[^\s/'\"<>:]+/)+(?=[^\s/])")


def configure_logging(
    level: str = "info", log_format: LogFormat = "auto", *, stacks: bool = True, **context: object
) -> None:
    """Send structlog's events and the standard library's records to stderr; `context` stands in every line.

    Without `stacks` an error is told by its class, its message and the functions it passed through, each with its
    line: no stack trace, no value of a variable, and no folder of this machine in any line.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [] if stacks else [_summarize_errors, _without_folders]
    # A plain trace: the usual one shows the variables of each frame, and one of them may be a secret.
    plain = structlog.dev.plain_traceback
    last += (
        [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
        if as_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Each says at INFO what our own events say already.
    for name in ("uvicorn", "httpx", "filelock", "asyncio", "torchft", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(**context)


def without_folders(text: str) -> str:
    """Return the text with every absolute path cut to its last part."""
    return _FOLDERS.sub("", text)


def _summarize_errors(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    given = event.pop("exc_info", None)
    event.pop("stack_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event.update(error=type(error).__name__, message=str(error), where=_where(error.__traceback__))
    return event


def _where(trace: TracebackType | None) -> str:
    """Return the functions that an error passed through, the outermost first."""
    steps = [
        f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}:{line}"
        for frame, line in traceback.walk_tb(trace)
    ]
    return " > ".join(steps[-_MOST_FRAMES:])


def _without_folders(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: without_folders(value) if isinstance(value, str) else value for key, value in event.items()}
