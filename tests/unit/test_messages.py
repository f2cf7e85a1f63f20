"""Requests and descriptions are the same on both sides of the contract."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.messages import description_from_proto, description_to_proto, request_from_proto, request_to_proto
from stillhouse.request import All, Explicit, From, Last, Limits, LogitsRequest, Sequence, TeacherDescription
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

U32 = st.integers(0, 2**32 - 1)


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    ids = tuple(draw(st.lists(U32, min_size=1, max_size=12)))
    indices = st.sets(st.integers(0, len(ids) - 1), min_size=1).map(sorted).map(tuple)
    positions = draw(
        st.one_of(
            st.just(Last()), st.just(All()), st.integers(0, len(ids) - 1).map(From), indices.map(Explicit)
        )
    )  # fmt: skip
    first = draw(st.integers(0, len(ids) - 1))
    return Sequence(ids, (first, len(ids) - first) if first else (), positions)


ENCODINGS: st.SearchStrategy[Encoding] = st.one_of(
    st.sampled_from(["float32", "float16", "bfloat16"]).map(Dense),  # type: ignore[arg-type]  # literals
    st.sampled_from(["float32", "bfloat16"]).map(Hidden),  # type: ignore[arg-type]  # literals
    st.builds(TopK, st.integers(1, 2**32 - 1), st.sampled_from(["float32", "float16"])),
    st.builds(Sampled, st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1)),
    st.builds(Candidates, st.sets(U32, min_size=1).map(sorted), st.sampled_from(["float32", "float16"])),
)
REQUESTS = st.builds(
    LogitsRequest,
    sequences=st.lists(sequences(), max_size=4).map(tuple),
    encoding=ENCODINGS,
    temperature=st.floats(1e-300, 1e300),
    vocabulary_size=U32,
    cache_mode=st.sampled_from(["use", "refresh", "bypass"]),
    expected_fingerprint=st.sampled_from(["", "00ff"]),
)
DESCRIPTION = TeacherDescription(
    model="m", fingerprint="f", weights_fingerprint="w", tokenizer_fingerprint="t", vocabulary_size=2**32 - 1,
    tokenizer_size=7, hidden_size=8, encodings=(Dense, Hidden, TopK, Sampled, Candidates),
    limits=Limits(1, 2, 3, 4, 5, 6, 2**63), compute_dtype="float32", mode="throughput", version="1", device_kind="cpu",
    tokens=("a", "\u0120b", "\U0001f600"),
)  # fmt: skip


@given(REQUESTS)
def test_a_request_survives_its_message(request: LogitsRequest) -> None:
    wire = request_to_proto(request).SerializeToString()
    assert request_from_proto(pb.LogitsRequest.FromString(wire)) == request


@given(st.binary(max_size=200))
def test_any_bytes_make_a_request_or_a_clear_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError, InvalidRequestError):
        assert isinstance(request_from_proto(pb.LogitsRequest.FromString(data)), LogitsRequest)


def test_a_description_survives_its_message_with_tokens_only_when_asked() -> None:
    assert description_from_proto(description_to_proto(DESCRIPTION, include_tokens=True)) == DESCRIPTION
    without = dataclasses.replace(DESCRIPTION, tokens=())
    assert description_from_proto(description_to_proto(DESCRIPTION)) == without


def test_encodings_of_a_newer_contract_are_left_out() -> None:
    message = pb.GetTeacherResponse(encodings=[pb.ENCODING_KIND_TOP_K, 99])  # type: ignore[list-item]  # open enum
    assert description_from_proto(message).encodings == (TopK,)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.LogitsRequest(dense=pb.DenseEncoding()), Dense("float32")),
        (pb.LogitsRequest(hidden=pb.HiddenEncoding()), Hidden("bfloat16")),
        (pb.LogitsRequest(top_k=pb.TopKEncoding(k=3)), TopK(3, "float16")),
        (pb.LogitsRequest(candidates=pb.CandidatesEncoding(token_ids=[4])), Candidates((4,), "float32")),
    ],
)
def test_what_is_left_out_has_the_contracts_default(message: pb.LogitsRequest, expected: Encoding) -> None:
    message.sequences.add(token_ids=[1, 2])
    request = request_from_proto(message)
    assert request == LogitsRequest((Sequence((1, 2), (), Last()),), expected, 1.0, 0, "use", "")


def dense(**fields: object) -> pb.LogitsRequest:
    return pb.LogitsRequest(dense=pb.DenseEncoding(), **fields)  # type: ignore[arg-type]  # any field of any kind


ONE = pb.Sequence(token_ids=[1])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.LogitsRequest(sequences=[ONE]), "encoding must be chosen"),
        (dense(sequences=[ONE, pb.Sequence()]), r"sequences\[1\].token_ids must hold at least one"),
        (dense(sequences=[pb.Sequence(token_ids=[1], segment_lengths=[2])]), r"sequences\[0\].segment_lengths"),
        (dense(sequences=[pb.Sequence(token_ids=[1], explicit=pb.ExplicitPositions())]), "positions.explicit"),
        (dense(sequences=[pb.Sequence(token_ids=[1], from_position=pb.FromPosition(start=1))]), "positions.from"),
        (dense(temperature=0.0), "temperature must be finite and above 0; got 0"),
        (dense(temperature=float("nan")), "temperature"),
        (dense(cache_mode=9), "cache_mode .* got number 9"),
        (pb.LogitsRequest(dense=pb.DenseEncoding(value_type=7)), "dense.value_type .* got number 7"),  # type: ignore[arg-type]  # open enum
        (pb.LogitsRequest(top_k=pb.TopKEncoding()), "top_k.k must be .* at least 1; got 0"),
        (pb.LogitsRequest(top_k=pb.TopKEncoding(k=1, value_type=pb.VALUE_TYPE_BFLOAT16)), "top_k.value_type"),
        (pb.LogitsRequest(sampled=pb.SampledEncoding()), "sampled.draws"),
        (pb.LogitsRequest(candidates=pb.CandidatesEncoding(token_ids=[2, 1])), "candidates.token_ids"),
    ],
)
def test_a_message_that_no_teacher_could_serve_names_its_field(message: pb.LogitsRequest, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        request_from_proto(message)


@pytest.mark.parametrize(
    "request_", [LogitsRequest((), TopK(2**32)), LogitsRequest((), vocabulary_size=2**32)], ids=["k", "n"]
)
def test_a_number_too_large_for_its_field_is_refused(request_: LogitsRequest) -> None:
    with pytest.raises(InvalidRequestError, match="does not fit"):
        request_to_proto(request_)
