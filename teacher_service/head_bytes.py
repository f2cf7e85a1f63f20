"""The output head's bytes, made when somebody asks and shared by all who ask meanwhile.

In the dtype that the model holds on the host they are views of its own weights and take no memory; in another they are
a copy, as large as the head, that is kept only as long as a caller is being sent it. Knows nothing of transports.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from stillhouse.chunks import split
from stillhouse.encodings import ValueType
from stillhouse.errors import EncodingNotOfferedError
from stillhouse.head_codec import encode_output_head
from stillhouse.payloads import OutputHead


class EncodedHead:
    """A head as buffers to be sent end to end; it lives as long as somebody holds it."""

    def __init__(self, buffers: Sequence[bytes | memoryview]) -> None:
        self.buffers = buffers
        self.num_bytes = sum(map(len, buffers))

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        """Give the bytes as chunks, each with the place where it starts."""
        for chunk in split(self.buffers):
            yield chunk


class HeadBytes:
    """Encodes one teacher's output head; for one event loop."""

    def __init__(self, head: OutputHead | None, compute_dtype: str) -> None:
        self._head = head
        # float16 has no place among the heads' types: float32 holds all of its values.
        self._default: ValueType = "bfloat16" if compute_dtype == "bfloat16" else "float32"
        self._in_use: WeakValueDictionary[ValueType, EncodedHead] = WeakValueDictionary()
        self._encoding = asyncio.Lock()

    async def get(self, value_type: ValueType | None) -> EncodedHead:
        """Return the head's bytes in float32 or bfloat16; None is the dtype that the teacher computes in.

        Raises:
            EncodingNotOfferedError: this teacher has no head that a caller could use.
        """
        if self._head is None:
            raise EncodingNotOfferedError("this teacher does not offer HIDDEN, and so no output head")
        chosen = value_type or self._default
        async with self._encoding:
            encoded = self._in_use.get(chosen)
            if encoded is None:
                # Seconds for a large model: every value is checked, converted and hashed.
                encoded = EncodedHead(await asyncio.to_thread(encode_output_head, self._head, chosen))
                self._in_use[chosen] = encoded
        return encoded

    @asynccontextmanager
    async def sending(self, value_type: ValueType | None) -> AsyncIterator[EncodedHead]:
        """Give the head for as long as it is being sent.

        Raises:
            EncodingNotOfferedError: as `get`.
        """
        yield await self.get(value_type)
