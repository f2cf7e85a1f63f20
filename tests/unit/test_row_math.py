"""A row's numbers follow from the row alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse import row_math
from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Encoding, Sampled, TopK
from stillhouse.payloads import CandidateLogits, Payload, SampledCounts
from stillhouse.request import All, Explicit, Sequence

# Wider than what torch gives to one thread at a time (32,768 elements), and no multiple of any vector's width.
WIDTH = 33_331


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def logits(rows: int) -> Tensor:
    return 3 * torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))


CANDIDATES = ((3, 500, 33_000), (0, 1, 2), (7, 8, 33_330), (5, 6, 7), (0, 9, 99))


def encoded(x: Tensor, encoding: Encoding, rows: list[int], chunk_rows: int) -> Payload:
    own = tuple(CANDIDATES[row] for row in rows) if encoding == Candidates() else ()
    positions = All() if len(rows) == len(CANDIDATES) else Explicit(tuple(rows))
    sequence = Sequence((1, 2, 3, 4, 5), positions=positions, candidate_ids=own)
    return encode_logits(
        torch.split(x[rows], chunk_rows), encoding, sequence=sequence, temperature=1.5, vocabulary_size=WIDTH
    )


@pytest.mark.parametrize("encoding", [TopK(20, "float32"), Candidates((4, 50)), Candidates(), Sampled(30)], ids=repr)
def test_a_rows_bytes_depend_neither_on_its_neighbours_nor_on_threads(encoding: Encoding, threads: int) -> None:
    x = logits(5)
    torch.set_num_threads(1)
    expected = [encode_payload(encoded(x, encoding, [row], 1)) for row in range(5)]
    torch.set_num_threads(threads)
    for rows in ([0], [4], [1, 3], [0, 1, 2, 3, 4]):
        for chunk_rows in (1, 2, 5):
            payload = encoded(x, encoding, rows, chunk_rows)
            for place, row in enumerate(rows):
                assert encode_payload(row_of(payload, place)) == expected[row], (rows, chunk_rows, row)


def row_of(payload: Payload, row: int) -> Payload:
    """The payload of one of its rows."""
    tensors = {f.name: getattr(payload, f.name) for f in fields(payload)}
    changes = {name: x[row : row + 1] for name, x in tensors.items() if isinstance(x, Tensor)}
    if isinstance(payload, SampledCounts):
        part = slice(int(payload.offsets[row]), int(payload.offsets[row + 1]))
        changes |= {
            "token_ids": payload.token_ids[part],
            "counts": payload.counts[part],
            "offsets": payload.offsets[row : row + 2] - payload.offsets[row],
        }
    elif isinstance(payload, CandidateLogits) and payload.token_ids.dim() == 1:
        del changes["token_ids"]
    return replace(payload, **changes)  # type: ignore[arg-type]  # fields of any kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_of_a_number_is_the_same_wherever_it_stands(dtype: torch.dtype) -> None:
    x = row_math.as_array(logits(1)[0].to(dtype))
    whole = row_math.exp(x)
    for start in range(40):
        for end in (start + 1, start + 5, 700 - start, WIDTH - start):
            assert (row_math.exp(x[start:end].copy()) == whole[start:end]).all()
            assert (row_math.log(whole[start:end].copy()) == row_math.log(whole)[start:end]).all()


@pytest.mark.parametrize("width", [1, 2, 3, 5, 64, 1000, 1001])
def test_sums_and_logsumexp_are_what_they_are_called(width: int) -> None:
    x = logits(4)[:, :width].double()
    exact = x.logsumexp(1)
    torch.testing.assert_close(row_math.row_logsumexp(x), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(row_math.row_logsumexp(x.float()).double(), exact, rtol=1e-6, atol=1e-6)
    expected = x.sum(1)
    torch.testing.assert_close(torch.from_numpy(row_math.row_sums_(x.clone().numpy())), expected)
    torch.testing.assert_close(row_math.row_sums_(x.clone()), expected)


def test_a_rows_sum_depends_neither_on_its_neighbours_nor_on_threads(threads: int) -> None:
    # torch's own sum of one row differs between one thread and two in every other of these rows.
    x = logits(40).exp()
    alone = [float(row_math.row_sums_(row[None].clone())) for row in x]
    assert threads == torch.get_num_threads()
    assert row_math.row_sums_(x.clone()).tolist() == alone
    assert row_math.row_sums_(x.clone().numpy()).tolist() == alone


def test_numpy_and_torch_add_the_same_tree() -> None:
    x = logits(3)
    assert (row_math.row_sums_(x.clone().numpy()) == row_math.row_sums_(x.clone()).numpy()).all()


@pytest.mark.parametrize("encoding", [TopK(20, "float32"), Candidates((4, 50)), Sampled(30)], ids=repr)
def test_what_a_device_computes_is_what_the_host_computes(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    # A device's tensors take torch's way instead of numpy's; here the host's are sent there. Only exp and log differ.
    x = logits(5)
    host = encoded(x, encoding, [0, 1, 2, 3, 4], 5)
    monkeypatch.setattr(row_math, "as_array", lambda tensor: tensor)
    device = encoded(x, encoding, [0, 1, 2, 3, 4], 5)
    for field in fields(host):
        a, b = getattr(host, field.name), getattr(device, field.name)
        if isinstance(a, Tensor) and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_the_logsumexp_of_nothing_is_minus_infinity_and_no_warning() -> None:
    x = torch.tensor([[-np.inf, -np.inf], [-np.inf, 3.0], [1e38, 1e38]])
    assert row_math.row_logsumexp(x).tolist() == [-np.inf, 3.0, pytest.approx(1e38)]
