"""What a client asks of whatever carries its calls: the three calls of the contract, each by gRPC or by HTTP.

A call is tried once, within the seconds given; it raises what the service meant, `CodecError` or `StreamError` for an
answer damaged on its way, and `TeacherUnavailableError` where nobody answers. When it is tried again is in `retries`.
"""

from __future__ import annotations

from typing import Protocol

from stillhouse.answer_messages import RawAnswer
from stillhouse.cutting import Part
from stillhouse.head_exchange import HeadReader
from stillhouse.payloads import OutputHead
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

Metadata = tuple[tuple[str, str], ...]
"""Names and values that go with a call: of gRPC's metadata, or HTTP headers."""


class Calls(Protocol):
    """Calls to one teacher, from any thread."""

    def describe(self, *, include_tokens: bool, seconds: float, metadata: Metadata) -> pb.GetTeacherResponse:
        """Ask what is served."""

    def answer(self, part: Part, *, seconds: float, metadata: Metadata) -> RawAnswer:
        """Ask about a part of a request."""

    def output_head(self, reader: HeadReader, *, seconds: float, metadata: Metadata) -> OutputHead:
        """Fetch the output head."""

    def close(self) -> None:
        """Let go of what is open; calls under way fail."""


class AsyncCalls(Protocol):
    """The same for asyncio, in one event loop."""

    async def describe(self, *, include_tokens: bool, seconds: float, metadata: Metadata) -> pb.GetTeacherResponse:
        """Ask what is served."""

    async def answer(self, part: Part, *, seconds: float, metadata: Metadata) -> RawAnswer:
        """Ask about a part of a request."""

    async def output_head(self, reader: HeadReader, *, seconds: float, metadata: Metadata) -> OutputHead:
        """Fetch the output head."""

    async def close(self) -> None:
        """Let go of what is open; calls under way fail."""
