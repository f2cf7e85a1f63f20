"""A teacher on a real GPU: what it encodes, that its bytes follow from the request, and what it does without memory."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse import TeacherClient
from stillhouse.codec import decode_payload, encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.payloads import DenseLogits, HiddenStates, TopKLogits
from stillhouse.request import All, From, Last, LogitsRequest, Sequence
from teacher_service.backends import TeacherBackend
from teacher_service.backends.conformance import BackendConformance
from teacher_service.backends.opening import open_backend
from teacher_service.backends.transformers import TransformersBackend
from teacher_service.batching import Computed, Job
from teacher_service.computing import BatchComputer, answers_fingerprint
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings
from tests.e2e.conftest import serving
from tests.tiny_models import tiny_model

VOCABULARY = 8192
LENGTHS = (1, 2, 5, 16, 17, 23, 31, 64, 70, 100, 3, 23, 200, 64)
ENCODINGS: tuple[Encoding, ...] = (Dense(), TopK(8), Sampled(50), Hidden("float32"), Candidates((3, 9)))


def save_model(folder: Path) -> None:
    """A random Llama of 26 million weights: large enough for cuBLAS to choose among its kernels."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("teacher-model")
    save_model(made)
    return made


def ids_of(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def make_jobs(loop: asyncio.AbstractEventLoop) -> list[Job]:
    jobs = []
    for index, length in enumerate(LENGTHS):
        positions = (All(), Last(), From(length // 2))[index % 3]
        segments = (length // 3, length - length // 3) if index == 7 else ()
        sequence = Sequence(ids_of(length, index), segments, positions)
        encoding = ENCODINGS[index % len(ENCODINGS)]
        jobs.append(Job(sequence, encoding, 1.0 + index % 2, VOCABULARY, None, loop.create_future()))
    return jobs


def payloads_of(compute: BatchComputer, jobs: list[Job]) -> list[bytes]:
    outcomes = compute(jobs)
    assert all(isinstance(one, Computed) for one in outcomes), outcomes
    return [bytes(one.payload) for one in outcomes if isinstance(one, Computed)]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.mark.parametrize("encoding", [Dense(), Dense("bfloat16"), TopK(64, "float32"), Sampled(50), Candidates((1, 7))])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_same_logits_are_encoded_as_on_a_cpu(cuda: torch.device, encoding: Encoding, temperature: float) -> None:
    logits = 3 * torch.randn(70, 50_000, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {
        "sequence": Sequence(tuple(range(70)), positions=All()), "temperature": temperature, "vocabulary_size": 49_152,
    }  # fmt: skip
    here = encode_logits([logits], encoding, **options)
    there = encode_logits([logits.to(cuda)], encoding, **options)
    for name in here.__slots__:
        one, other = getattr(here, name), getattr(there, name)
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)
        elif isinstance(one, torch.Tensor):
            assert torch.equal(one, other), name
        else:
            assert one == other, name
    if isinstance(encoding, Dense):
        assert encode_payload(here) == encode_payload(there)


class TestBackend(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("llama").to("cuda"), name="llama", tokens=("a", "b"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_deterministic_mode_only_the_request_counts(
    folder: Path, loop: asyncio.AbstractEventLoop, dtype: str
) -> None:
    """Alone, among neighbours, in other orders, and in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), dtype],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    other = json.loads(done.stdout.splitlines()[-1])
    settings = TeacherSettings(model=str(folder), dtype=dtype, mode="deterministic", device="cuda")  # type: ignore[arg-type]  # a name of a dtype
    backend = open_backend(settings)
    assert "pass_tokens=4096" in backend.describe().shapes, backend.describe().shapes
    compute = BatchComputer(backend, Metrics(), head_chunk_rows=64)
    jobs = make_jobs(loop)
    alone = [payloads_of(compute, [job])[0] for job in jobs]
    orders = ([n * 5 % len(jobs) for n in range(len(jobs))], list(range(len(jobs)))[::-1])
    for order in orders:
        for batch in (order, order[:5], order[5:], order[::3]):
            assert payloads_of(compute, [jobs[n] for n in batch]) == [alone[n] for n in batch]
    assert other["fingerprint"] == answers_fingerprint(backend.describe(), head_chunk_rows=64)
    assert other["payloads"] == [payload.hex() for payload in alone]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_logits_are_those_of_the_model_itself(folder: Path, dtype: str, tolerance: float) -> None:
    backend = open_backend(TeacherSettings(model=str(folder), dtype=dtype, device="cuda"))  # type: ignore[arg-type]  # as above
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to("cuda").eval()
    sequences = [Sequence(ids_of(length, length), positions=All()) for length in (5, 64, 33)]
    for sequence, rows in zip(sequences, backend.forward(sequences).rows, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([sequence.token_ids], device="cuda")).logits[0]
        torch.testing.assert_close(backend.head(rows).float(), expected, rtol=0, atol=tolerance)


def test_a_batch_that_does_not_fit_into_the_gpus_memory_is_halved_and_answered(
    folder: Path, loop: asyncio.AbstractEventLoop
) -> None:
    backend = open_backend(TeacherSettings(model=str(folder), dtype="float32", device="cuda"))
    metrics = Metrics()
    compute = BatchComputer(backend, metrics, head_chunk_rows=64)
    jobs = [
        Job(Sequence(ids_of(1000, n), positions=Last()), TopK(8), 1.0, VOCABULARY, None, loop.create_future())
        for n in range(64)
    ]
    whole = payloads_of(compute, jobs[:1])
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    # Room for a few of these sequences at once, and not for all.
    torch.cuda.set_per_process_memory_fraction((held + 300 * 2**20) / total)
    try:
        answers = payloads_of(compute, jobs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(answers) == 64
    assert compute.largest_fitting_tokens is not None
    assert metrics.out_of_memory._value.get() >= 1
    ours, alone = decode_payload(answers[0]), decode_payload(whole[0])
    assert isinstance(ours, TopKLogits)
    assert isinstance(alone, TopKLogits)
    torch.testing.assert_close(ours.logits.float(), alone.logits.float(), rtol=0, atol=1e-2)


def test_the_service_serves_a_model_on_the_gpu_and_says_so(folder: Path, tmp_path: Path) -> None:
    import urllib.request

    flags = ("--backend", "transformers", "--model", str(folder), "--device", "cuda", "--dtype", "bfloat16")
    with serving(tmp_path, *flags) as addresses, TeacherClient(addresses["grpc"]) as teacher:
        asked = [list(ids_of(length, length)) for length in (9, 40, 128)]
        dense = teacher.logits(asked, encoding=Dense())
        hidden = teacher.logits(asked, encoding=Hidden())
        head = teacher.output_head()
        for one, other in zip(dense, hidden, strict=True):
            assert isinstance(one, DenseLogits)
            assert isinstance(other, HiddenStates)
            on_gpu = head.to(dtype=torch.float32, device=torch.device("cuda"))
            rebuilt = on_gpu.logits(other.hidden.to("cuda", torch.float32))
            torch.testing.assert_close(rebuilt.float().cpu(), one.logits.float(), rtol=0, atol=0.1)
        again = teacher.answer(LogitsRequest(tuple(Sequence(tuple(ids), positions=All()) for ids in asked), Dense()))
        assert again.cache_hits == 3
        with urllib.request.urlopen(f"{addresses['http']}/metrics", timeout=10) as response:  # noqa: S310 - our own loopback address
            metrics = response.read().decode()
    assert 'teacher_device_memory_bytes{device="cuda:0",kind="allocated"}' in metrics
    seconds = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith(("teacher_compute_duration_seconds_sum", "teacher_encode_duration_seconds_sum"))
    }
    # The model's first passes take far longer than copying three small answers: its time must not count as encoding.
    assert seconds["teacher_compute_duration_seconds_sum"] > seconds["teacher_encode_duration_seconds_sum"]


def _main(folder: str, dtype: Any) -> None:
    backend = open_backend(TeacherSettings(model=folder, dtype=dtype, mode="deterministic", device="cuda"))
    compute = BatchComputer(backend, Metrics(), head_chunk_rows=64)
    jobs = make_jobs(asyncio.new_event_loop())
    payloads = [payloads_of(compute, [job])[0].hex() for job in reversed(jobs)][::-1]
    fingerprint = answers_fingerprint(backend.describe(), head_chunk_rows=64)
    sys.stdout.write(json.dumps({"fingerprint": fingerprint, "payloads": payloads}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
