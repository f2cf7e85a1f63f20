"""Encodings as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.encoding_text import format_encoding, parse_encoding, parse_encodings
from stillhouse.encodings import MAX_SEED, Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("dense", Dense("float32")),
        ("dense:bfloat16", Dense("bfloat16")),
        (" dense:f16 ", Dense("float16")),
        ("hidden", Hidden("bfloat16")),
        ("hidden:f32", Hidden("float32")),
        ("top_k:64", TopK(64, "float16")),
        ("top_k:8:f32", TopK(8, "float32")),
        ("sampled", Sampled(50, 0)),
        ("sampled:12", Sampled(12, 0)),
        ("sampled:12:7", Sampled(12, 7)),
        ("candidates:3", Candidates((3,))),
        ("candidates:3,17,40:f16", Candidates((3, 17, 40), "float16")),
        ("candidates", Candidates()),
    ],
)
def test_what_is_left_out_has_the_encodings_default(text: str, encoding: Encoding) -> None:
    assert parse_encoding(text) == encoding


@pytest.mark.parametrize(
    "text",
    ["", "top_k", "top_k:0", "top_k:8:bf16", "top_k:8:f32:1", "dense:f8", "dense:", "hidden:f16", "sampled:0", "topk:8",
     "sampled:1:-1", "candidates:3,3", "candidates:f16", "auto"],
)  # fmt: skip
def test_what_is_no_encoding_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"top_k:K\[:dtype\]"):
        parse_encoding(text)


def test_a_comma_before_a_digit_stands_between_ids() -> None:
    assert parse_encodings("top_k:64, candidates:3,17:f16,dense,candidates") == (
        TopK(64), Candidates((3, 17), "float16"), Dense(), Candidates(),
    )  # fmt: skip


values = st.sampled_from(["float32", "float16"])
encodings = (
    st.builds(Dense, st.sampled_from(["float32", "float16", "bfloat16"]))
    | st.builds(Hidden, st.sampled_from(["float32", "bfloat16"]))
    | st.builds(TopK, st.integers(1, 10**6), values)
    | st.builds(Sampled, st.integers(1, 10**6), st.integers(0, MAX_SEED))
    | st.builds(Candidates, st.lists(st.integers(0, 10**6), unique=True).map(sorted), values)
)


@given(encodings)
def test_what_is_written_is_read_back(encoding: Encoding) -> None:
    assert parse_encoding(format_encoding(encoding)) == encoding
    assert parse_encodings(f"dense,{format_encoding(encoding)},top_k:3")[1] == encoding
