"""Payloads survive their bytes; bytes that are not whole payloads never become one."""

from __future__ import annotations

import dataclasses
import os
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.codec import DTYPES, decode_payload, encode_payload, header_of, verify_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import CodecError
from stillhouse.payload_header import HEADER_BYTES, Header, Kind
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits

EXAMPLES: dict[str, Payload] = {
    "dense": DenseLogits(torch.tensor([[1.0, -2.0, 0.5]])),
    "hidden": HiddenStates(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)),
    "top_k": TopKLogits(
        token_ids=torch.tensor([[7, 2]], dtype=torch.int32),
        logits=torch.tensor([[3.0, 1.0]], dtype=torch.float16),
        log_normalizer=torch.tensor([3.5]),
        log_tail_mass=torch.tensor([-2.0]),
        tempered_log_normalizer=torch.tensor([4.0]),
        tempered_log_tail_mass=torch.tensor([-1.0]),
        temperature=2.0,
        vocabulary_size=10,
    ),
    "sampled": SampledCounts(
        offsets=torch.tensor([0, 2, 3]),
        token_ids=torch.tensor([1, 8, 4], dtype=torch.int32),
        counts=torch.tensor([3, 1, 4], dtype=torch.int32),
        entropy=torch.tensor([1.5, 0.25]),
        draws=4,
        temperature=1.0,
        vocabulary_size=10,
    ),
    "candidates": CandidateLogits(
        token_ids=torch.tensor([0, 9], dtype=torch.int32),
        logits=torch.tensor([[1.0, 2.0]]),
        log_normalizer=torch.tensor([3.0]),
        tempered_log_normalizer=torch.tensor([4.0]),
        temperature=0.5,
        vocabulary_size=10,
    ),
}

# Fields, checksum, body, as docs/payload-format.md lays them out.
GOLDEN = {
    "dense": (
        "5348504c010101003c00000000000000010000000000000003000000000000000000000000000000"
        "ebcc29555ba5cf3d"
        "0000803f000000c00000003f"
    ),
    "hidden": (
        "5348504c010203003400000000000000010000000000000002000000000000000000000000000000e52c7a634882fe13803f00c0"
    ),
    "top_k": (
        "5348504c010302004c0000000000000001000000000000000a000000020000000000000000000040"
        "556e62ac75e551fc"
        "070000000200000000006040000000c000008040000080bf0042003c"
    ),
    "sampled": (
        "5348504c010400013b0000000000000002000000000000000a00000004000000000000000000f03f"
        "78fecc6b10127423"
        "0000c03f0000803e318089"
    ),
    "candidates": (
        "5348504c01050100480000000000000001000000000000000a00000002000000000000000000e03f"
        "22d03e9b6ccb378a"
        "000000000900000000004040000080400000803f00000040"
    ),
}


def random_bits(dtype: torch.dtype, *shape: int, generator: torch.Generator) -> Tensor:
    """Values of any bits at all: NaN of every payload, infinities and subnormals included."""
    size = dtype.itemsize
    data = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, generator=generator)
    return data.view(dtype)


def random_payload(kind: Kind, value_type: ValueType, rows: int, width: int, count: int, seed: int) -> Payload:
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[value_type]

    def statistic() -> Tensor:
        return random_bits(torch.float32, rows, generator=generator)

    def distinct_ids() -> Tensor:
        return torch.randperm(width, generator=generator)[:count].int()

    temperature = 0.25 + seed % 7
    match kind:
        case Kind.DENSE:
            return DenseLogits(random_bits(dtype, rows, width, generator=generator))
        case Kind.HIDDEN:
            return HiddenStates(random_bits(dtype, rows, width, generator=generator))
        case Kind.TOP_K:
            ids = torch.stack([distinct_ids() for _ in range(rows)]) if rows else torch.empty(0, count).int()
            logits = random_bits(dtype, rows, count, generator=generator)
            return TopKLogits(ids, logits, statistic(), statistic(), statistic(), statistic(), temperature, width)
        case Kind.CANDIDATES:
            logits = random_bits(dtype, rows, count, generator=generator)
            return CandidateLogits(distinct_ids().sort().values, logits, statistic(), statistic(), temperature, width)
        case Kind.SAMPLED:
            draws = [torch.randint(0, width, (count,), generator=generator) for _ in range(rows)]
            found = [torch.unique(row, return_counts=True) for row in draws]
            offsets = torch.tensor([0, *(len(ids) for ids, _ in found)]).cumsum(0)
            empty = torch.empty(0, dtype=torch.int32)
            ids = torch.cat([empty, *(ids.int() for ids, _ in found)])
            counts = torch.cat([empty, *(counts.int() for _, counts in found)])
            return SampledCounts(offsets, ids, counts, statistic(), count, temperature, width)


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    kind = draw(st.sampled_from(Kind))
    allowed: dict[Kind, list[ValueType]] = {
        Kind.DENSE: ["float32", "float16", "bfloat16"],
        Kind.HIDDEN: ["float32", "bfloat16"],
    }
    value_type = draw(st.sampled_from(allowed.get(kind, ["float32", "float16"])))
    width = draw(st.one_of(st.integers(1, 70), st.sampled_from([256, 1000])))
    count = draw(st.integers(1, 60 if kind is Kind.SAMPLED else width))
    return random_payload(kind, value_type, draw(st.integers(0, 6)), width, count, draw(st.integers(0, 2**32)))


def assert_same_bits(actual: Payload, expected: Payload) -> None:
    assert type(actual) is type(expected)
    for field in dataclasses.fields(expected):
        a, b = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(b, Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            if b.numel():
                assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_of_the_format_stay_what_they_are(name: str) -> None:
    payload, golden = EXAMPLES[name], GOLDEN[name]
    assert encode_payload(payload).hex() == golden
    assert_same_bits(decode_payload(bytes.fromhex(golden)), payload)


@settings(deadline=None)
@given(payloads())
def test_every_payload_survives_its_bytes_bit_by_bit(payload: Payload) -> None:
    data = encode_payload(payload)
    assert_same_bits(decode_payload(data), payload)
    assert encode_payload(decode_payload(data)) == data
    least, most = header_of(payload).size_bounds()
    assert least <= len(data) <= most
    assert verify_payload(data) == header_of(payload)


def test_an_empty_tensor_that_came_from_an_array_has_bytes() -> None:
    empty = DenseLogits(torch.from_numpy(np.zeros((0, 3), dtype=np.float32)))
    assert decode_payload(encode_payload(empty)).num_positions == 0


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_tensors_need_not_be_contiguous(shape: tuple[int, int]) -> None:
    wide = torch.randn(shape[0], 7)[:, 2:5]
    assert_same_bits(decode_payload(encode_payload(DenseLogits(wide))), DenseLogits(wide.contiguous()))


def test_a_writable_buffer_is_shared_and_kept_alive() -> None:
    buffer = bytearray(encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]]))))
    payload = decode_payload(buffer)
    assert isinstance(payload, DenseLogits)
    buffer[HEADER_BYTES : HEADER_BYTES + 4] = b"\0\0\0\x40"
    assert payload.logits.tolist() == [[2.0, 2.0]]


def test_a_read_only_buffer_is_copied_without_a_warning() -> None:
    data = encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        payload = decode_payload(data)
    assert isinstance(payload, DenseLogits)
    payload.logits.zero_()
    assert data == encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]])))


def test_a_buffer_that_starts_anywhere_decodes() -> None:
    data = encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]])))
    for shift in range(9):
        payload = decode_payload(memoryview(bytearray(b"x" * shift + data))[shift:])
        assert isinstance(payload, DenseLogits)
        assert payload.logits.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_and_every_flipped_bit_is_refused(name: str) -> None:
    data = encode_payload(EXAMPLES[name])
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode_payload(data[:length])
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode_payload(altered)


def forge(data: bytes | bytearray, **fields: float) -> bytearray:
    """Set header fields and mend the checksum, as an attacker or a faulty writer would."""
    import struct

    import xxhash

    places = {
        "magic": ("<I", 0), "version": ("<B", 4), "kind": ("<B", 5), "value_type": ("<B", 6), "gap_bits": ("<B", 7),
        "total": ("<Q", 8), "rows": ("<Q", 16), "width": ("<I", 24), "count": ("<I", 28), "temperature": ("<d", 32),
    }  # fmt: skip
    forged = bytearray(data)
    for name, value in fields.items():
        struct.pack_into(places[name][0], forged, places[name][1], value)
    struct.pack_into("<Q", forged, 40, xxhash.xxh3_64_intdigest(forged[:40] + forged[48:]))
    return forged


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dense", {"magic": 0x04034B50}, "starts with"),
        ("dense", {"version": 2}, "update Stillhouse"),
        ("dense", {"kind": 0}, "not known"),
        ("dense", {"kind": 6}, "not known"),
        ("dense", {"value_type": 4}, "not known"),
        ("dense", {"value_type": 0}, "cannot hold"),
        ("hidden", {"value_type": 2}, "cannot hold"),
        ("dense", {"total": 61}, "truncated"),
        ("dense", {"total": 59}, "after its end"),
        ("dense", {"rows": 2**60}, "describes"),
        ("dense", {"rows": 2**64 - 1, "width": 2**31}, "describes"),
        ("dense", {"rows": 0}, "describes"),
        ("dense", {"width": 0}, "width"),
        ("dense", {"width": 2**32 - 1}, "width"),
        ("dense", {"count": 1}, "neither"),
        ("dense", {"temperature": 1.0}, "neither"),
        ("dense", {"gap_bits": 1}, "gap bits"),
        ("sampled", {"gap_bits": 32}, "gap bits"),
        ("sampled", {"gap_bits": 31}, "describes|low bits"),
        ("sampled", {"rows": 2**60}, "describes"),
        ("sampled", {"count": 2**31 - 1}, "describes"),
        ("sampled", {"count": 0}, "count"),
        ("sampled", {"width": 8}, "token_ids"),
        ("top_k", {"count": 11}, "count"),
        ("top_k", {"count": 2**31, "rows": 2**62}, "count"),
        ("top_k", {"width": 7}, "token_ids"),
        ("top_k", {"temperature": float("nan")}, "temperature"),
        ("top_k", {"temperature": 0.0}, "temperature"),
        ("top_k", {"temperature": -1.0}, "temperature"),
        ("candidates", {"temperature": float("inf")}, "temperature"),
        ("candidates", {"width": 9}, "token_ids"),
        ("candidates", {"width": 1}, "count"),
    ],
)
def test_a_header_that_lies_is_refused_even_with_a_true_checksum(
    name: str, fields: dict[str, int | float], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        decode_payload(forge(encode_payload(EXAMPLES[name]), **fields))


def test_bits_that_no_writer_leaves_are_refused() -> None:
    data = bytearray(encode_payload(EXAMPLES["sampled"]))
    for position in range(HEADER_BYTES + 8, len(data)):
        for bit in range(8):
            altered = data.copy()
            altered[position] ^= 1 << bit
            try:
                payload = decode_payload(forge(altered))
            except CodecError:
                continue
            # What still decodes is another payload with bytes of its own: no two byte strings mean the same.
            assert encode_payload(payload) == forge(altered)


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(CodecError, match="after its end"):
        decode_payload(encode_payload(EXAMPLES["dense"]) + b"\0")


def replace(name: str, **changes: object) -> Payload:
    return dataclasses.replace(EXAMPLES[name], **changes)  # type: ignore[arg-type]  # any field of any kind


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (DenseLogits(torch.zeros(2)), "logits"),
        (DenseLogits(torch.zeros(2, 3, dtype=torch.float64)), "logits"),
        (HiddenStates(torch.zeros(2, 3, dtype=torch.float16)), "float16"),
        (replace("top_k", token_ids=ints(7, 2)), "token_ids"),
        (replace("top_k", token_ids=torch.tensor([[7, 2]])), "token_ids"),
        (replace("top_k", token_ids=ints(7, 10)[None]), "below N"),
        (replace("top_k", token_ids=ints(-1, 2)[None]), "below N"),
        (replace("top_k", log_tail_mass=torch.zeros(2)), "log_tail_mass"),
        (replace("top_k", vocabulary_size=1), "count"),
        (replace("candidates", token_ids=ints(9, 0)), "increasing"),
        (replace("sampled", offsets=torch.tensor([0, 3, 2])), "offsets"),
        (replace("sampled", offsets=torch.tensor([1, 2, 3])), "offsets"),
        (replace("sampled", offsets=torch.tensor([0, 0, 3])), "offsets"),
        (replace("sampled", token_ids=ints(8, 1, 4)), "increasing"),
        (replace("sampled", counts=ints(3, 2, 4)), "add up"),
        (replace("sampled", counts=ints(4, 0, 4)), "at least 1"),
        (replace("sampled", draws=5), "add up"),
    ],
)
def test_a_payload_that_contradicts_itself_gets_no_bytes(payload: Payload, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        encode_payload(payload)


@pytest.mark.parametrize(
    ("encoding", "name", "temperature", "width"),
    [
        (Dense(), "dense", 7.0, 3),
        (Hidden(), "hidden", 7.0, 3),
        (TopK(2), "top_k", 2, 10),
        (Sampled(4), "sampled", 1.0, 10),
        (Candidates((0, 9)), "candidates", 0.5, 10),
    ],
)
def test_the_expected_header_is_that_of_the_answer(
    encoding: Encoding, name: str, temperature: float, width: int
) -> None:
    payload = EXAMPLES[name]
    expected = Header.expected(
        encoding, rows=payload.num_positions, temperature=temperature, vocabulary_size=width, hidden_size=2
    )
    assert expected == header_of(payload)


def test_a_sample_of_fifty_draws_takes_at_most_forty_bytes_a_position() -> None:
    # Zipf's law over SmolLM2's vocabulary, shuffled, with as many distinct ids in 50 draws as the real teacher has.
    generator = torch.Generator().manual_seed(0)
    rows, width, draws = 256, 49152, 50
    weights = 1 / torch.arange(1, width + 1).double() ** 1.53
    offsets, ids, counts = [0], [], []
    for _ in range(rows):
        drawn = torch.randperm(width, generator=generator)[torch.multinomial(weights, draws, True, generator=generator)]
        row_ids, row_counts = torch.unique(drawn, return_counts=True)
        ids.append(row_ids.int())
        counts.append(row_counts.int())
        offsets.append(offsets[-1] + len(row_ids))
    payload = SampledCounts(
        torch.tensor(offsets), torch.cat(ids), torch.cat(counts), torch.zeros(rows), draws, 1.0, width
    )
    assert 16.5 < offsets[-1] / rows < 17.5
    assert len(encode_payload(payload)) / rows <= 40


def mutate(data: bytes, random_: random.Random) -> bytes:
    altered = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        match random_.randrange(4):
            case 0 if altered:
                altered[random_.randrange(len(altered))] = random_.randrange(256)
            case 1:
                del altered[random_.randrange(len(altered) + 1) :]
            case 2:
                place = random_.randrange(len(altered) + 1)
                altered[place:place] = random_.randbytes(random_.randint(1, 9))
            case _ if len(altered) >= HEADER_BYTES:
                start = random_.randrange(0, HEADER_BYTES - 8)
                altered[start : start + 8] = random_.choice([b"\xff" * 8, b"\0" * 8, random_.randbytes(8)])
            case _:
                pass
    return bytes(altered)


def fuzz(rounds: int, seed: int) -> None:
    random_ = random.Random(seed)
    originals = [encode_payload(payload) for payload in EXAMPLES.values()]
    for _ in range(rounds):
        data = random_.choice(originals)
        altered = mutate(data, random_)
        if altered != data:
            with pytest.raises(CodecError):
                decode_payload(altered)
        if len(altered) >= HEADER_BYTES:
            # With a true checksum the header is believed: then whatever decodes must be what it says.
            forged = bytes(forge(altered))
            try:
                payload = decode_payload(forged)
            except CodecError:
                continue
            assert verify_payload(forged) == header_of(payload)


def test_mutated_bytes_are_refused_or_mean_what_they_say() -> None:
    fuzz(3000, seed=1)


@pytest.mark.long
def test_many_mutated_bytes_are_refused_or_mean_what_they_say() -> None:
    fuzz(int(1_000_000 * float(os.environ.get("STILLHOUSE_TEST_COUNT", "1"))), seed=2)
