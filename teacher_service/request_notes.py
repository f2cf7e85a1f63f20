"""What is noted of each request: its id, who asked for what, and where its time went.

Both gates open a note, what answers fills it in, and its end decides what becomes of it: a line of the log where it
took long or failed, and a place among the slowest for the page. Knows nothing of gRPC or HTTP. For one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import structlog

from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Candidates
from stillhouse.request import LogitsRequest
from stillhouse.request_ids import usable_request_id
from stillhouse.tracing import span

SLOWEST = 8
WINDOW_SECONDS = 900
"""The page shows the slowest of the last quarter of an hour."""

_BUCKET_SECONDS = 60

# The caller's own affair, counted in metrics: a line for each would let anybody fill the log.
_UNTOLD = frozenset(
    {"OK", "CANCELLED", "UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "200", "204", "304", "303", "401",
     "403", "404", "405", "429", "499"}
)  # fmt: skip

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class RequestNote:
    """One request. Seconds; those of the model are of the batches that it was part of."""

    request_id: str
    method: str
    caller: str = ""
    code: str = ""
    began: float = field(default_factory=time.time)
    seconds: float = 0.0
    encoding: str = ""
    sequences: int = 0
    tokens: int = 0
    cache_hits: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    encode_seconds: float = 0.0

    def as_event(self) -> dict[str, Any]:
        """Return what a line of the log holds of it, but for what is empty and what every line has."""
        names = [name for name in self.__slots__ if name not in ("began", "request_id", "caller")]
        # Without its slash a path is not taken for a folder of this machine.
        values = {name: getattr(self, name) for name in names} | {"method": self.method.replace(" /", " ")}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items() if value}


_current: ContextVar[RequestNote | None] = ContextVar("request_note", default=None)


class RequestNotes:
    """The requests of one service."""

    def __init__(self, log_over_seconds: float) -> None:
        self._log_over_seconds = log_over_seconds
        self._slowest: dict[int, list[RequestNote]] = {}
        self.elsewhere: Callable[[], Iterable[RequestNote]] = tuple
        """The slowest of other processes of this service."""

    @contextmanager
    def taking(
        self, method: str, given_id: str | None, headers: Mapping[str, str], *, is_shown: bool = True
    ) -> Iterator[RequestNote]:
        """Note one request for as long as the block runs; every line logged in it has its id.

        Args:
            method: as metrics name it.
            given_id: what the caller sent.
            headers: all that came with it, or the metadata: they may name a span of the caller's.
            is_shown: whether it may stand among the slowest: not what waits on purpose, or looks at the page.
        """
        note = RequestNote(usable_request_id(given_id), method)
        started = time.monotonic()
        token = _current.set(note)
        try:
            with (
                structlog.contextvars.bound_contextvars(request_id=note.request_id),
                span(method, headers, request_id=note.request_id) if is_shown else nullcontext(None) as live,
            ):
                try:
                    yield note
                finally:
                    note.seconds = time.monotonic() - started
                    if live is not None and live.is_recorded:
                        live.note(**note.as_event(), caller=note.caller)
                    self._end(note, is_shown=is_shown)
        finally:
            _current.reset(token)

    def slowest(self) -> list[RequestNote]:
        """Return the slowest of the last minutes, the slowest first."""
        self._forget()
        kept = [note for notes in self._slowest.values() for note in notes]
        kept += self.elsewhere()
        return sorted(kept, key=lambda note: -note.seconds)[:SLOWEST]

    def _end(self, note: RequestNote, *, is_shown: bool) -> None:
        fails = note.code not in _UNTOLD
        if is_shown and (fails or note.seconds >= self._log_over_seconds):
            logger.info("request_failed" if fails else "request_answered", caller=note.caller, **note.as_event())
        if not is_shown or not note.tokens:
            return
        bucket = self._slowest.setdefault(_bucket(), [])
        if len(bucket) >= SLOWEST and note.seconds <= bucket[-1].seconds:
            return
        bucket.append(note)
        bucket.sort(key=lambda one: -one.seconds)
        del bucket[SLOWEST:]
        self._forget()

    def _forget(self) -> None:
        for bucket in [bucket for bucket in self._slowest if bucket < _bucket() - WINDOW_SECONDS // _BUCKET_SECONDS]:
            del self._slowest[bucket]


def current_note() -> RequestNote:
    """Return the note of the request under way; an empty one outside of any."""
    return _current.get() or RequestNote("", "")


def note_caller(name: str) -> None:
    """Note who makes the request under way."""
    note = _current.get()
    if note is not None:
        note.caller = name


def note_request(request: LogitsRequest) -> None:
    """Note what the request under way asks for."""
    note = _current.get()
    if note is not None:
        # The ids of candidates may be thousands.
        is_long = isinstance(request.encoding, Candidates)
        note.encoding = "candidates" if is_long else format_encoding(request.encoding)
        note.sequences = len(request.sequences)
        note.tokens = sum(len(sequence.token_ids) for sequence in request.sequences)


def note_answer(*, cache_hits: int, queue_seconds: float, compute_seconds: float, encode_seconds: float) -> None:
    """Note where the time of the request under way went."""
    note = _current.get()
    if note is not None:
        note.cache_hits = cache_hits
        note.queue_seconds, note.compute_seconds = queue_seconds, compute_seconds
        note.encode_seconds = encode_seconds


def _bucket() -> int:
    return int(time.monotonic() // _BUCKET_SECONDS)
