"""A request as a teacher takes it: cut into parts within its limits, and the parts' answers joined again.

Between sequences where that is enough, and between the positions of one sequence where its answer alone is too large.
Neither changes an answer: what stands at a position follows from the sequence, not from what else was asked for. Knows
nothing of channels or bytes on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

from stillhouse.encodings import Candidates
from stillhouse.errors import RequestTooLongError
from stillhouse.payload_header import Header, expected_headers
from stillhouse.payloads import concatenate
from stillhouse.providers import Answer
from stillhouse.request import Explicit, LogitsRequest, Sequence, TeacherDescription

# A service holds the whole answer to a request while it streams it; this bounds what one request makes it hold.
MAX_PART_BYTES = 512 * 2**20

ONE_MESSAGE_BYTES = 4 * 2**20
"""An answer of up to so many bytes comes in one message. Measured over gRPC on loopback, 3 MB come so in three quarters
of the time of a stream; from 8 MB on a stream is the quicker one, which also sends what the reader has room for."""

# Field tags, lengths, fingerprint and temperature, beside the ids that a request holds.
_MESSAGE_OVERHEAD_BYTES = 4096
_SEQUENCE_OVERHEAD_BYTES = 64
# Protobuf takes seven bits to a byte, and all of ours have 32.
_MOST_NUMBER_BYTES = 5


@dataclass(frozen=True, slots=True)
class Part:
    """A request that the teacher serves at once, and the headers of the payloads that answer it.

    `owners` are the indices of its sequences in the whole request; one that was cut stands there once for each piece.
    `message_bytes` is the most that one message with an answer may have.
    """

    request: LogitsRequest
    headers: tuple[Header, ...]
    owners: tuple[int, ...]
    message_bytes: int

    @property
    def most_bytes(self) -> int:
        """The most bytes that its payloads can have together."""
        return sum(header.size_bounds()[1] for header in self.headers)

    @property
    def fits_one_message(self) -> bool:
        """Whether its answer is small enough to come in one message rather than as a stream."""
        return self.most_bytes <= min(ONE_MESSAGE_BYTES, self.message_bytes - _MESSAGE_OVERHEAD_BYTES)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some positions of one sequence, mostly all of them; `asked_bytes` is what naming them takes in a message."""

    owner: int
    sequence: Sequence
    header: Header
    asked_bytes: int

    @property
    def answer_bytes(self) -> int:
        return self.header.size_bounds()[1]


def cut(
    request: LogitsRequest, teacher: TeacherDescription, *, max_answer_bytes: int, max_message_bytes: int
) -> list[Part]:
    """Check a request against its teacher, and cut it into parts within the teacher's limits.

    Args:
        request: what is asked.
        teacher: who is asked.
        max_answer_bytes: the most that all payloads together may have.
        max_message_bytes: the most that a message to the teacher may have; its own limit may be lower.

    Raises:
        TeacherError: what the teacher would answer to it, naming fields of the whole request.
        RequestTooLongError: an answer of more than `max_answer_bytes`, or a position that fits no message.
    """
    limits = teacher.limits
    enough = replace(limits, max_sequences=len(request.sequences), max_request_tokens=max(request.num_tokens, 1))
    request.check(replace(teacher, limits=enough))
    headers = expected_headers(request, teacher)
    total = sum(header.size_bounds()[1] for header in headers)
    if total > max_answer_bytes:
        raise RequestTooLongError(
            f"sequences: their answer would have {total} bytes, over the client's max_answer_bytes of "
            f"{max_answer_bytes}; ask about fewer positions, or for a sparser encoding"
        )
    message_bytes = min(max_message_bytes, limits.max_message_bytes)
    room = message_bytes - _common_bytes(request, teacher)
    if _is_small(request, teacher, total, room):
        return [Part(request, tuple(headers), tuple(range(len(headers))), message_bytes)]
    pieces = [
        piece
        for index, (sequence, header) in enumerate(zip(request.sequences, headers, strict=True))
        for piece in _pieces(index, sequence, header, teacher, room)
    ]
    return [
        Part(
            replace(request, sequences=tuple(piece.sequence for piece in group)),
            tuple(piece.header for piece in group),
            tuple(piece.owner for piece in group),
            message_bytes,
        )
        for group in _groups(pieces, teacher, room)
    ]


def _is_small(request: LogitsRequest, teacher: TeacherDescription, answer_bytes: int, room: int) -> bool:
    """Return whether a request fits as it is, counted on the safe side: most do, and need no look at each sequence."""
    limits, count = teacher.limits, len(request.sequences)
    numbers = request.num_tokens * 2 + request.num_positions
    if isinstance(request.encoding, Candidates):
        numbers += sum(sequence.num_positions * sequence.num_candidates for sequence in request.sequences)
    return (
        0 < count <= limits.max_sequences
        and request.num_tokens <= limits.max_request_tokens
        and answer_bytes <= MAX_PART_BYTES
        and numbers * _MOST_NUMBER_BYTES + count * _SEQUENCE_OVERHEAD_BYTES <= room
    )


def _pieces(index: int, sequence: Sequence, header: Header, teacher: TeacherDescription, room: int) -> Iterator[_Piece]:
    id_bytes = _varint_bytes(teacher.vocabulary_size)
    index_bytes = _varint_bytes(len(sequence.token_ids))
    fixed = len(sequence.token_ids) * id_bytes + len(sequence.segment_lengths) * index_bytes + _SEQUENCE_OVERHEAD_BYTES
    # Pieces name their positions one by one, whatever form the whole was in.
    each = index_bytes + sequence.num_candidates * id_bytes
    whole = _Piece(index, sequence, header, fixed + sequence.num_positions * each)
    if whole.answer_bytes <= MAX_PART_BYTES and whole.asked_bytes <= room:
        yield whole
        return
    rows = min(MAX_PART_BYTES // replace(header, rows=1).size_bounds()[1], (room - fixed) // each)
    if rows < 1:
        raise RequestTooLongError(
            f"sequences[{index}]: one position takes a message of {fixed + each} bytes to ask about, over the limit of "
            f"{max(room, 0)}; name fewer candidates, or raise max_message_bytes on the side where it is lower"
        )
    indices = tuple(sequence.position_indices())
    for start in range(0, len(indices), rows):
        some = slice(start, start + rows)
        positions = Explicit(indices[some])
        piece = replace(sequence, positions=positions, candidate_ids=sequence.candidate_ids[some])
        count = piece.num_positions
        yield _Piece(index, piece, replace(header, rows=count), fixed + count * each)


def _groups(pieces: SequenceOf[_Piece], teacher: TeacherDescription, room: int) -> Iterator[list[_Piece]]:
    limits = teacher.limits
    group: list[_Piece] = []
    tokens = answer_bytes = asked_bytes = 0
    for piece in pieces:
        tokens += len(piece.sequence.token_ids)
        answer_bytes += piece.answer_bytes
        asked_bytes += piece.asked_bytes
        full = len(group) >= limits.max_sequences or tokens > limits.max_request_tokens
        if group and (full or answer_bytes > MAX_PART_BYTES or asked_bytes > room):
            yield group
            group, tokens = [], len(piece.sequence.token_ids)
            answer_bytes, asked_bytes = piece.answer_bytes, piece.asked_bytes
        group.append(piece)
    if group:
        yield group


def _common_bytes(request: LogitsRequest, teacher: TeacherDescription) -> int:
    named = len(request.encoding.token_ids) if isinstance(request.encoding, Candidates) else 0
    return _MESSAGE_OVERHEAD_BYTES + named * _varint_bytes(teacher.vocabulary_size)


def _varint_bytes(limit: int) -> int:
    """Return how many bytes protobuf takes at most for a number below `limit`."""
    return max(1, -(-(limit - 1).bit_length() // 7))


def join_answers(parts: SequenceOf[Part], answers: SequenceOf[Answer], fingerprint: str) -> Answer:
    """Return the answer to a whole request from those to its parts, asked one after the other."""
    if len(parts) == 1 and parts[0].owners[-1] == len(parts[0].owners) - 1:
        return answers[0]
    owned = (
        pair
        for part, answer in zip(parts, answers, strict=True)
        for pair in zip(part.owners, answer.payloads, strict=True)
    )
    whole = groupby(owned, key=itemgetter(0))
    return Answer(
        payloads=tuple(concatenate([payload for _, payload in pieces]) for _, pieces in whole),
        fingerprint=fingerprint,
        cache_hits=sum(answer.cache_hits for answer in answers),
        queue_seconds=max((answer.queue_seconds for answer in answers), default=0.0),
        compute_seconds=sum(answer.compute_seconds for answer in answers),
        encode_seconds=sum(answer.encode_seconds for answer in answers),
        num_bytes=sum(answer.num_bytes for answer in answers),
    )
