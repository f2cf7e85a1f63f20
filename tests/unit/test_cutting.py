"""A request is cut within its teacher's limits, and answered as if it had not been."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse import cutting
from stillhouse.codec import encode_payload
from stillhouse.cutting import cut, join_answers
from stillhouse.encodings import Candidates, Dense, Encoding, Sampled, TopK
from stillhouse.errors import RequestTooLongError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.messages import request_to_proto
from stillhouse.request import All, Explicit, From, Last, Limits, LogitsRequest, Positions, Sequence

VOCABULARY_SIZE = 300
TEACHER = FixtureTeacher(VOCABULARY_SIZE)
OWN = Candidates((), "float16")
ENCODINGS: list[Encoding] = [Dense("float16"), TopK(3), Sampled(4), Candidates((1, 5)), OWN]

ids = st.integers(0, VOCABULARY_SIZE - 1)


@st.composite
def sequences(draw: st.DrawFn, *, candidates: int) -> Sequence:
    tokens = tuple(draw(st.lists(ids, min_size=1, max_size=12)))
    last = len(tokens) - 1
    some = st.sets(st.integers(0, last), min_size=1).map(lambda indices: Explicit(tuple(sorted(indices))))
    chosen: st.SearchStrategy[Positions] = st.one_of(
        st.just(All()), st.just(Last()), st.builds(From, st.integers(0, last)), some
    )
    plain = Sequence(tokens, positions=draw(chosen))
    if not candidates:
        return plain
    named = st.sets(ids, min_size=candidates, max_size=candidates).map(lambda some: tuple(sorted(some)))
    return replace(plain, candidate_ids=tuple(draw(named) for _ in range(plain.num_positions)))


@st.composite
def requests(draw: st.DrawFn) -> LogitsRequest:
    encoding = draw(st.sampled_from(ENCODINGS))
    some = draw(st.lists(sequences(candidates=draw(st.integers(1, 4)) if encoding == OWN else 0), max_size=5))
    return LogitsRequest(tuple(some), encoding, temperature=2.0)


@settings(max_examples=150, deadline=None)
@given(
    request=requests(),
    max_sequences=st.integers(1, 4),
    max_request_tokens=st.integers(12, 40),
    part_bytes=st.integers(1200, 20_000),
    message_bytes=st.integers(4096 + 150, 4096 + 400),
)
def test_the_parts_keep_every_limit_and_their_answers_join_to_the_whole(
    request: LogitsRequest, max_sequences: int, max_request_tokens: int, part_bytes: int, message_bytes: int
) -> None:
    limits = Limits(max_sequences=max_sequences, max_request_tokens=max_request_tokens, max_message_bytes=message_bytes)
    teacher = replace(TEACHER.describe(), limits=limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "MAX_PART_BYTES", part_bytes)
        parts = cut(request, teacher, max_answer_bytes=2**30, max_message_bytes=2**30)
    for part in parts:
        part.request.check(teacher)
        assert part.most_bytes <= part_bytes
        assert request_to_proto(part.request).ByteSize() <= message_bytes
    joined = join_answers(parts, [TEACHER.answer(part.request) for part in parts], teacher.fingerprint)
    whole = TEACHER.answer(request)
    assert list(map(encode_payload, joined.payloads)) == list(map(encode_payload, whole.payloads))


def test_what_fits_is_one_part_as_it_stands() -> None:
    request = LogitsRequest((Sequence((1, 2), positions=All()), Sequence((3,))))
    (part,) = cut(request, TEACHER.describe(), max_answer_bytes=2**30, max_message_bytes=2**30)
    assert part.request == request
    assert part.fits_one_message


ANSWER_BYTES = VOCABULARY_SIZE * 4 + 48


@pytest.mark.parametrize(
    ("one_message_bytes", "max_message_bytes", "fits"),
    [
        (ANSWER_BYTES, 2**30, True),
        (ANSWER_BYTES - 1, 2**30, False),
        (ANSWER_BYTES, ANSWER_BYTES + 4096, True),
        (ANSWER_BYTES, ANSWER_BYTES + 4095, False),
    ],
)
def test_an_answer_comes_in_one_message_up_to_a_size_and_within_what_a_message_may_have(
    monkeypatch: pytest.MonkeyPatch, one_message_bytes: int, max_message_bytes: int, *, fits: bool
) -> None:
    monkeypatch.setattr(cutting, "ONE_MESSAGE_BYTES", one_message_bytes)
    request = LogitsRequest((Sequence((1,)),), Dense())
    (part,) = cut(request, TEACHER.describe(), max_answer_bytes=2**30, max_message_bytes=max_message_bytes)
    assert (part.most_bytes, part.fits_one_message) == (ANSWER_BYTES, fits)


def test_one_sequence_whose_answer_is_too_large_is_cut_by_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    row = VOCABULARY_SIZE * 4
    monkeypatch.setattr(cutting, "MAX_PART_BYTES", 5 * (row + 48))
    request = LogitsRequest((Sequence(tuple(range(12)), (5, 7), From(1)),), Dense())
    parts = cut(request, TEACHER.describe(), max_answer_bytes=2**30, max_message_bytes=2**30)
    assert [part.request.sequences[0].positions for part in parts] == [
        Explicit((1, 2, 3, 4, 5)), Explicit((6, 7, 8, 9, 10)), Explicit((11,)),
    ]  # fmt: skip
    assert all(part.request.sequences[0].segment_lengths == (5, 7) for part in parts)


def test_a_position_that_fits_no_message_is_refused_with_the_remedy() -> None:
    request = LogitsRequest((Sequence((1,), candidate_ids=(tuple(range(200)),)),), Candidates())
    with pytest.raises(RequestTooLongError, match=r"sequences\[0\].*name fewer candidates"):
        cut(request, TEACHER.describe(), max_answer_bytes=2**30, max_message_bytes=4096 + 300)
