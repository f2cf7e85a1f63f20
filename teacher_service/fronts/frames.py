"""What a front process and the engine say to each other: frames over a Unix socket, each whole or an error.

    magic  kind  about bytes  body bytes  call   about            body
    2      u8    u32          u32         u64    a JSON object    bytes

All numbers are little-endian. `call` names the request that a frame belongs to, 0 where it belongs to none; `about` is
small; `body` is a message of the contract, or payload bytes. Nothing is ever unpickled. Knows nothing of sockets.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from stillhouse.errors import StillhouseError

Buffer = bytes | bytearray | memoryview

_MAGIC = b"SF"
_HEAD = struct.Struct("<2sBIIQ")

MAX_ABOUT_BYTES = 2**20
MAX_BODY_BYTES = 2**31 - 1
"""As gRPC's own messages: what comes in one of them goes on in one frame."""
MAX_CALL = 2**64 - 1


class FrameError(StillhouseError):
    """Bytes that are no frame: cut off, foreign, or larger than any frame is."""


class Kind(IntEnum):
    """What a frame says. The first ten go to a front, the others to the engine."""

    START = 1  # what a front is to be: its settings
    READY = 2  # the teacher's description: open for requests
    DRAIN = 3  # refuse what is new
    END = 4  # the grace is over: give up what is in flight
    CLOSE = 5  # go
    ANSWER = 6  # to an ASK or a HEAD
    PIECE = 7  # more of an answer's bytes
    ERROR = 8  # instead of an answer
    SCRAPE = 9  # say what was counted

    LISTENING = 32  # the port is open
    FAILED = 33  # it cannot be
    ASK = 34  # what is not remembered
    LEAVE = 35  # a call is of no interest any more: its work, its place and its shared memory
    HEAD = 36  # the output head
    NEXT = 37  # its next piece
    SAMPLES = 38  # what was counted
    EMPTY = 39  # after DRAIN: nothing is in flight any more
    OPEN = 40  # after READY: requests are accepted


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing said."""

    kind: Kind
    call: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    body: Buffer = b""


def write_head(frame: Frame) -> bytes:
    """Return the bytes that go before a frame's body.

    Raises:
        FrameError: more than a frame holds.
    """
    about = json.dumps(frame.about, separators=(",", ":")).encode() if frame.about else b""
    if len(about) > MAX_ABOUT_BYTES or len(frame.body) > MAX_BODY_BYTES or not 0 <= frame.call <= MAX_CALL:
        raise FrameError(
            f"a {frame.kind.name} frame of call {frame.call} with {len(about)} and {len(frame.body)} bytes is over the "
            f"limits of {MAX_ABOUT_BYTES} and {MAX_BODY_BYTES}"
        )
    return _HEAD.pack(_MAGIC, frame.kind, len(about), len(frame.body), frame.call) + about


async def read_frame(read: Callable[[int], Awaitable[bytes]]) -> Frame | None:
    """Read the next frame; `read` gives exactly so many bytes, or fewer where there are no more.

    Returns:
        None where the other side ended between two frames.

    Raises:
        FrameError: what comes is no frame, or ends in the middle of one; nothing is read for a size that none has.
    """
    head = await read(_HEAD.size)
    if not head:
        return None
    if len(head) < _HEAD.size:
        raise FrameError(f"a frame was cut off after {len(head)} bytes")
    magic, number, about_bytes, body_bytes, call = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise FrameError(f"a frame starts with {_MAGIC!r}; got {magic!r}")
    if number not in iter(Kind):
        raise FrameError(f"a frame of kind {number} is not known here")
    if about_bytes > MAX_ABOUT_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(f"a frame of {about_bytes} and {body_bytes} bytes is over the limits")
    about = await read(about_bytes) if about_bytes else b""
    body = await read(body_bytes) if body_bytes else b""
    if len(about) < about_bytes or len(body) < body_bytes:
        raise FrameError(f"a {Kind(number).name} frame was cut off in the middle")
    return Frame(Kind(number), call, _object(about), body)


def _object(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError("what a frame says of itself is no JSON") from error
    if not isinstance(value, dict):
        raise FrameError(f"what a frame says of itself must be an object; got {type(value).__name__}")
    return value
