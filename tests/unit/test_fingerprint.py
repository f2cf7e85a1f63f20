"""Fingerprints and cache keys: equal iff every bit that matters is equal."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.fingerprint import (
    backend_fingerprint,
    cache_key,
    cache_keys,
    fingerprint,
    tokens_fingerprint,
    weights_fingerprint,
)
from stillhouse.request import All, Explicit, From, Last, Sequence

SEQUENCE = Sequence((5, 6, 7, 8), positions=All())
ENCODINGS: tuple[Encoding, ...] = (Dense(), Hidden(), TopK(4), Sampled(10), Candidates((1, 2)))


def key(sequence: Sequence = SEQUENCE, encoding: Encoding | None = None, **changes: object) -> bytes:
    settings = {"temperature": 1.0, "vocabulary_size": 100, "backend": "b", **changes}
    return cache_key(
        str(settings["backend"]),
        sequence,
        encoding or Dense(),
        temperature=float(str(settings["temperature"])),
        vocabulary_size=int(str(settings["vocabulary_size"])),
    )


@given(st.lists(st.one_of(st.text(), st.binary(), st.integers()), max_size=4), st.lists(st.text(), max_size=4))
def test_different_lists_of_fields_have_different_fingerprints(left: list[str | bytes | int], right: list[str]) -> None:
    assert (fingerprint(*left) == fingerprint(*right)) == ([(type(x), x) for x in left] == [(str, x) for x in right])


def test_a_fingerprint_never_changes_between_versions() -> None:
    assert fingerprint("a", b"b", 3) == "f896859fd2c85b64e3467adaa2653bbc"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (Dense(), "f83c200d10b27f862568de226be9cc69"),
        (TopK(3), "90859994cb43d3a917f4fc17ccf9ab9b"),
        (Candidates(), "e0f9f4bde0872067827ad952697d0803"),
    ],
    ids=repr,
)
def test_a_key_never_changes_between_versions(encoding: Encoding, expected: str) -> None:
    named = ((1, 2), (3, 4)) if encoding == Candidates() else ()
    sequence = Sequence((5, 6, 7), (1, 2), From(1), named)
    assert cache_key("b" * 32, sequence, encoding, temperature=2, vocabulary_size=10).hex() == expected


def test_keys_made_together_are_those_made_alone() -> None:
    sequences = [
        Sequence((5, 6, 7), (1, 2), From(1), ((1, 2), (3, 4))),
        Sequence((5,), candidate_ids=((8,),)),
        Sequence((5,), candidate_ids=((9,),)),
    ]
    together = cache_keys("b", sequences, Candidates(), temperature=2, vocabulary_size=10)
    assert together == [cache_key("b", one, Candidates(), temperature=2, vocabulary_size=10) for one in sequences]
    assert len(set(together)) == 3


def test_weights_have_one_fingerprint_whatever_their_order_and_layout() -> None:
    a, b = torch.randn(3, 4), torch.randn(5).to(torch.bfloat16)
    one = weights_fingerprint({"a": a, "b": b})
    assert one == weights_fingerprint({"b": b, "a": a.t().contiguous().t()})


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "bit", "sign of zero"])
def test_weights_that_differ_have_different_fingerprints(change: str) -> None:
    tensor = torch.zeros(2, 3)
    other = {
        "name": ("y", tensor),
        "dtype": ("x", tensor.half()),
        "shape": ("x", tensor.reshape(3, 2)),
        "bit": ("x", tensor + 1e-30),
        "sign of zero": ("x", -tensor),
    }[change]
    assert weights_fingerprint({"x": tensor}) != weights_fingerprint(dict([other]))


def test_a_scalar_and_an_empty_tensor_have_fingerprints() -> None:
    assert weights_fingerprint({"x": torch.tensor(1.0)}) != weights_fingerprint({"x": torch.empty(0)})


def test_tokens_count_with_their_boundaries() -> None:
    assert tokens_fingerprint(["ab", "c"]) != tokens_fingerprint(["a", "bc"])


def test_everything_that_changes_a_teachers_bytes_changes_its_fingerprint() -> None:
    settings = {
        "weights": "w",
        "compute_dtype": "float32",
        "device_kind": "cpu",
        "torch_version": "2.13",
        "attention": "sdpa",
        "mode": "throughput",
    }
    prints = {backend_fingerprint(**{**settings, name: "other"}) for name in settings}
    assert len(prints | {backend_fingerprint(**settings)}) == len(settings) + 1


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_temperature_stands_in_the_key_only_where_it_changes_the_bytes(encoding: Encoding) -> None:
    same = key(encoding=encoding) == key(encoding=encoding, temperature=2.0)
    assert same == isinstance(encoding, Dense | Hidden)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_the_vocabulary_stands_in_the_key_only_where_it_changes_the_bytes(encoding: Encoding) -> None:
    same = key(encoding=encoding) == key(encoding=encoding, vocabulary_size=99)
    assert same == isinstance(encoding, Hidden)


def test_every_parameter_of_an_encoding_changes_the_key() -> None:
    encodings = [
        *ENCODINGS,
        Dense("float16"),
        Dense("bfloat16"),
        Hidden("float32"),
        TopK(5),
        TopK(4, "float32"),
        Sampled(11),
        Sampled(10, seed=1),
        Candidates((1, 3)),
        Candidates((1, 2), "float16"),
    ]
    assert len({key(encoding=encoding) for encoding in encodings}) == len(encodings)


@pytest.mark.parametrize("encoding", [*ENCODINGS, Candidates()], ids=repr)
def test_candidates_of_each_position_stand_in_the_key_only_where_they_are_asked_for(encoding: Encoding) -> None:
    one = dataclasses.replace(SEQUENCE, candidate_ids=((1, 2), (3, 4), (1, 2), (0, 9)))
    other = dataclasses.replace(SEQUENCE, candidate_ids=((1, 2), (3, 5), (1, 2), (0, 9)))
    assert (key(one, encoding) == key(other, encoding)) == (encoding != Candidates())


def test_candidates_named_for_each_position_are_not_those_named_once_for_all() -> None:
    named = dataclasses.replace(SEQUENCE, candidate_ids=((1, 2),) * 4)
    assert key(named, Candidates()) != key(encoding=Candidates((1, 2)))
    assert key(named, Candidates()) != key(named, Candidates((), "float16"))


def test_the_same_ids_dealt_otherwise_to_the_positions_have_another_key() -> None:
    last = Sequence((5, 6), positions=Last(), candidate_ids=((1, 2, 3, 4),))
    both = Sequence((5, 6), positions=All(), candidate_ids=((1, 2), (3, 4)))
    assert key(last, Candidates()) != key(both, Candidates())


def test_the_seed_stands_in_the_key_of_draws_alone() -> None:
    keys = [key(encoding=Sampled(10, seed)) for seed in (0, 1, 2**64 - 1)]
    assert len(set(keys)) == 3
    assert not any("seed" in type(encoding).__slots__ for encoding in ENCODINGS if not isinstance(encoding, Sampled))


def test_ids_segments_positions_and_backend_change_the_key() -> None:
    variants = [
        SEQUENCE,
        dataclasses.replace(SEQUENCE, token_ids=(5, 6, 8, 7)),
        dataclasses.replace(SEQUENCE, segment_lengths=(2, 2)),
        dataclasses.replace(SEQUENCE, segment_lengths=(1, 3)),
        dataclasses.replace(SEQUENCE, positions=Last()),
        dataclasses.replace(SEQUENCE, positions=From(1)),
    ]
    keys = {key(sequence) for sequence in variants} | {key(backend="c")}
    assert len(keys) == len(variants) + 1


def test_the_same_positions_said_in_other_words_have_the_same_key() -> None:
    ways = (All(), From(0), Explicit((0, 1, 2, 3)))
    assert len({key(dataclasses.replace(SEQUENCE, positions=way)) for way in ways}) == 1


def test_one_document_has_the_same_key_named_or_not() -> None:
    assert key(dataclasses.replace(SEQUENCE, segment_lengths=(4,))) == key(SEQUENCE)


def test_an_integer_temperature_has_the_key_of_the_same_number() -> None:
    assert key(encoding=TopK(4), temperature=2) == key(encoding=TopK(4), temperature=2.0)
