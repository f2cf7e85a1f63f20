"""What JSON asks becomes the request that gRPC would have made of it; what is wrong is named, in linear time."""

from __future__ import annotations

import pytest

from stillhouse.encodings import Candidates, Sampled
from stillhouse.errors import InvalidRequestError
from stillhouse.request import Explicit, LogitsRequest, Sequence
from teacher_service.http_door.requests import LogitsIn


def test_every_field_is_read() -> None:
    body = b"""{"sequences": [{"token_ids": [1, 2, 3], "segment_lengths": [1, 2], "positions": {"explicit": [0, 2]},
        "candidate_ids": [[1, 2], [3, 4]]}], "encoding": {"kind": "candidates", "value_type": "float16"},
        "temperature": 2, "vocabulary_size": 9, "cache_mode": "bypass", "expected_fingerprint": "f"}"""
    sequence = Sequence((1, 2, 3), (1, 2), Explicit((0, 2)), ((1, 2), (3, 4)))
    expected = LogitsRequest((sequence,), Candidates((), "float16"), 2.0, 9, "bypass", "f")
    assert LogitsIn.from_json(body).to_request() == expected


def test_defaults_are_those_of_a_request() -> None:
    asked = LogitsIn.from_json(b'{"sequences": [{"token_ids": [1]}]}')
    assert asked.to_request() == LogitsRequest((Sequence((1,)),))
    sampled = LogitsIn.from_json(b'{"sequences": [], "encoding": {"kind": "sampled"}}')
    assert sampled.to_request().encoding == Sampled()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "body: Invalid JSON"),
        ("[]", "body: Input should be an object"),
        ("{", "body: Invalid JSON"),
        ('{"sequences": 1}', "sequences: Input should be a valid array"),
        ('{"sequences": [{"token_ids": [1.0]}]}', "sequences[0].token_ids[0]: Input should be a valid integer"),
        ('{"sequences": [{"token_ids": [true]}]}', "sequences[0].token_ids[0]: Input should be a valid integer"),
        ('{"sequences": [{"token_ids": ["1"]}]}', "sequences[0].token_ids[0]: Input should be a valid integer"),
        ('{"sequences": [], "temperature": NaN}', "temperature: Input should be a finite number"),
        ('{"sequences": [], "temperature": "1"}', "temperature: Input should be a valid number"),
        ('{"sequences": [], "temperature": true}', "temperature: Input should be a valid number"),
        ('{"sequences": [], "encoding": {"kind": "x"}}', "encoding: Input tag 'x' found using 'kind' does not match"),
        ('{"sequences": [], "encoding": {"kind": "top_k"}}', "encoding.top_k.k: Field required"),
        ('{"sequences": [{"token_ids": [1], "positions": {"from": "x"}}]}', "sequences[0].positions.from.from: Input"),
        ('{"sequences": [{"token_ids": [1], "positions": 3}]}', "sequences[0].positions.name: Input should be 'last'"),
        ('{"sequences": [], "expected_fingerprint": "\\ud800"}', "body: Invalid JSON"),
        ('{"sequences": [], "colour": 1}', "colour: Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_named(body: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        LogitsIn.from_json(body.encode())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "value",
    [
        "[" * 1_000_000,
        '{"a":' * 1_000_000,
        "9" * 5_000_000,
        "[" + ",".join(['"x"'] * 500_000) + "]",
        "[" + ",".join(["9" * 4000] * 500) + "]",
        '"' + "\\u0041" * 500_000,
    ],
    ids=["deep lists", "deep objects", "a giant integer", "many wrong ids", "many large ids", "an open string"],
)
@pytest.mark.timeout(10)
def test_a_hostile_body_is_refused_soon_and_in_few_words(value: str) -> None:
    body = f'{{"sequences": [{{"token_ids": {value}}}]}}'.encode()
    with pytest.raises(InvalidRequestError) as caught:
        LogitsIn.from_json(body).to_request()
    assert len(str(caught.value)) < 1000


def test_few_of_many_errors_are_told() -> None:
    names = ",".join(f'"field{number}": 1' for number in range(50))
    with pytest.raises(InvalidRequestError, match="and 46 more"):
        LogitsIn.from_json(f"{{{names}}}".encode())
