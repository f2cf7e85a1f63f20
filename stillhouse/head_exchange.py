"""A client's half of fetching the output head: read what comes, believe none of it.

The head is what hidden states are rebuilt with, so a wrong one would make every later answer wrong without a sign.
Knows nothing of channels, deadlines or retries.
"""

from __future__ import annotations

from urllib.parse import urlencode

from stillhouse.chunks import Joiner
from stillhouse.encodings import ValueType
from stillhouse.errors import EncodingNotOfferedError, InvalidRequestError, RequestTooLongError, StreamError
from stillhouse.exchange import check_fingerprint
from stillhouse.head_codec import decode_output_head
from stillhouse.messages import value_type_to_proto
from stillhouse.payload_header import Header, Kind
from stillhouse.payloads import OutputHead
from stillhouse.request import TeacherDescription
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.tensor_bytes import VALUE_TYPES

_HEAD_VALUE_TYPES: tuple[ValueType, ...] = ("float32", "bfloat16")


class HeadReader:
    """Reads an output head that comes in chunks, and sees that it is the described teacher's."""

    def __init__(self, teacher: TeacherDescription, value_type: ValueType | None, *, max_bytes: int) -> None:
        """Expect the head of a teacher; `value_type` None is what it computes in.

        Raises:
            EncodingNotOfferedError: the teacher has no hidden states to rebuild from.
            InvalidRequestError: a value type that no head travels in.
            RequestTooLongError: a head of more than `max_bytes`.
        """
        if teacher.hidden_size == 0:
            raise EncodingNotOfferedError(f"teacher {teacher.model!r} does not offer Hidden, and so no output head")
        if value_type not in (None, *_HEAD_VALUE_TYPES):
            raise InvalidRequestError(f"value_type must be float32, bfloat16 or None; got {value_type!r}")
        self._teacher = teacher
        self._value_type = value_type
        rows, width = teacher.vocabulary_size, teacher.hidden_size
        self._sizes = {
            Header(Kind.OUTPUT_HEAD, one, rows, width, count=biases).size_bounds()[0]
            for one in ([value_type] if value_type else _HEAD_VALUE_TYPES)
            for biases in (0, 1)
        }
        if min(self._sizes) > max_bytes:
            raise RequestTooLongError(
                f"the output head has at least {min(self._sizes)} bytes, over the client's max_head_bytes of "
                f"{max_bytes}; raise that, or ask for another encoding"
            )
        self._max_bytes = max_bytes
        self._joiner: Joiner | None = None

    @property
    def request(self) -> pb.GetOutputHeadRequest:
        """The message that asks for it."""
        return pb.GetOutputHeadRequest(
            value_type=value_type_to_proto(self._value_type), expected_fingerprint=self._teacher.fingerprint
        )

    @property
    def query(self) -> str:
        """What asks for it over HTTP."""
        chosen = {} if self._value_type is None else {"value_type": self._value_type}
        return urlencode({"expected_fingerprint": self._teacher.fingerprint, **chosen})

    def expect(self, fingerprint: str, num_bytes: int) -> None:
        """Take what is said of a head before its bytes come.

        Raises:
            StreamError: a size that this teacher's head cannot have.
            FingerprintMismatchError: the teacher has become another.
        """
        check_fingerprint(fingerprint, self._teacher.fingerprint)
        if num_bytes not in self._sizes:
            raise StreamError(
                f"an output head of {num_bytes} bytes is announced, where this teacher's has one of "
                f"{sorted(self._sizes)}"
            )

    def take(self, message: pb.GetOutputHeadResponse) -> None:
        """Take the next chunk.

        Raises:
            StreamError: a chunk out of order, or a size that this teacher's head cannot have.
            FingerprintMismatchError: the teacher has become another.
        """
        if self._joiner is None:
            self.expect(message.fingerprint, message.total_bytes)
            self._joiner = Joiner([message.total_bytes], max_bytes=self._max_bytes)
        else:
            check_fingerprint(message.fingerprint, self._teacher.fingerprint)
        self._joiner.add(message.offset, message.data)

    def finish(self) -> OutputHead:
        """Return the head when the stream has ended.

        Raises:
            StreamError: it ended early.
            StreamError, CodecError: as `read`.
        """
        if self._joiner is None:
            raise StreamError("the stream of the output head ended before it began")
        (data,) = self._joiner.finish()
        return self.read(data)

    def read(self, data: bytes | bytearray | memoryview) -> OutputHead:
        """Return the head that these bytes are.

        Raises:
            StreamError: the head of another shape or value type.
            CodecError: bytes that are no output head.
        """
        head = decode_output_head(data)
        value_type = VALUE_TYPES[head.weight.dtype]
        expected = (self._teacher.vocabulary_size, self._teacher.hidden_size)
        if tuple(head.weight.shape) != expected or self._value_type not in (None, value_type):
            raise StreamError(
                f"the output head is {value_type} {list(head.weight.shape)}, where {self._value_type or 'any'} "
                f"{list(expected)} was asked for"
            )
        return head
