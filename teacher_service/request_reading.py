"""Reads a request's message within the limits of what is served: a large one beside the event loop, one at a time."""

from __future__ import annotations

import asyncio
from itertools import islice

from stillhouse.errors import RequestTooLongError
from stillhouse.messages import request_from_proto
from stillhouse.request import Limits, LogitsRequest
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

# A request of more numbers than this is read beside the event loop, one at a time: each becomes an object.
_MANY_NUMBERS = 2**16


class RequestReader:
    """Reads requests; for one event loop."""

    def __init__(self) -> None:
        self._reading = asyncio.Lock()

    async def read(self, message: pb.LogitsRequest, limits: Limits) -> LogitsRequest:
        """Read a request of a size within the limits: a message has room for hundreds of times as much.

        Raises:
            InvalidRequestError: a field that no teacher could serve.
            RequestTooLongError: more than the limits allow.
        """
        counts = [len(sequence.token_ids) for sequence in islice(message.sequences, limits.max_sequences)]
        if len(message.sequences) > limits.max_sequences or sum(counts) > limits.max_request_tokens:
            raise RequestTooLongError(
                f"sequences: {len(message.sequences)} with {sum(counts)} tokens or more are over this teacher's limits "
                f"of {limits.max_sequences} and {limits.max_request_tokens}; send several requests"
            )
        # A number has at least one byte, and counting the bytes is the quicker.
        if message.ByteSize() < _MANY_NUMBERS or sum(map(_num_numbers, message.sequences)) < _MANY_NUMBERS:
            return request_from_proto(message)
        async with self._reading:
            return await asyncio.to_thread(request_from_proto, message)


def _num_numbers(sequence: pb.Sequence) -> int:
    fields = (sequence.token_ids, sequence.segment_lengths, sequence.explicit.indices, sequence.candidate_ids)
    return sum(map(len, fields))
