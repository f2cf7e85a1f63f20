"""How many students does one teacher keep busy, and what do its answers take of the network and of Redis?

The teacher is the real SmolLM2 as a service, in float32 and in blocks of 256 tokens of Python's own help topics; the
student is half of its layers, trained by the trainer's own loop on answers that it has at hand. Teacher and student run
by turns, each with the whole machine: what is compared is what each would do on a machine like this one of its own.
"""

from __future__ import annotations

import pydoc_data.topics
import statistics
from typing import cast

import numpy as np

from benchmarks._measure import seconds_of
from benchmarks._real_service import CountingRelay, RealService, real_service
from benchmarks._result import Result, Value
from benchmarks._training.loop import BATCH, DistantTeacher, InMemory, train, whole_sample
from stillhouse.asking import Asking
from stillhouse.client import TeacherClient
from stillhouse.data import Sample
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.models import load_causal_lm, load_tokenizer, resolve_model
from student_worker.corpus import Samples
from student_worker.students.causal_lm import CausalLMStudent
from student_worker.students.keep_layers import keep_layers

BLOCK_TOKENS, BLOCK_TOKENS_QUICK = 256, 32
CHARACTERS_PER_TOKEN = 4
KEPT_LAYERS = tuple(range(0, 30, 2))
ENCODINGS: dict[str, Encoding] = {
    "sampled 50": Sampled(50),
    "top-12": TopK(12),
    "top-64": TopK(64),
    "top-256": TopK(256),
    "hidden bf16": Hidden("bfloat16"),
    "hidden f32": Hidden("float32"),
    "dense bf16": Dense("bfloat16"),
    "dense f32": Dense("float32"),
}
TRAINED_ON = "sampled 50"
LARGE_BLOCKS = 4
"""Of dense answers, which take up to 200 KB a token, so many blocks are enough."""
MEGA = 1_000_000


def measure(quick: bool) -> Result:
    """Measure bytes once, and speeds in rounds of turns.

    Figures, medians of the rounds' ratios: `students_per_teacher`, tokens a second that the teacher computes over those
    that the student trains on; `students_per_teacher_cached`, the same where Redis knows every answer;
    `students_per_teacher_by_flops`, what 2 FLOPs a weight of the teacher's pass over 6 of the student's would say.
    """
    rounds, steps, blocks = (1, 2, 2) if quick else (2, 2, 8)
    samples = _samples(blocks, BLOCK_TOKENS_QUICK if quick else BLOCK_TOKENS)
    with real_service("--model", "smollm2", "--dtype", "float32") as service:
        rows = [_bytes(service, name, samples.samples[: _count(name, blocks)]) for name in ENCODINGS]
        speeds, by_flops = _speeds(service, samples, rounds, steps)
    rows += [
        {
            "what": what,
            "tokens_s_min": round(min(rates), 1),
            "tokens_s_median": round(statistics.median(rates), 1),
            "tokens_s_max": round(max(rates), 1),
        }
        for what, rates in speeds.items()
    ]
    computed, remembered, student = speeds.values()
    figures = {
        "students_per_teacher": _ratio(computed, student),
        "students_per_teacher_cached": _ratio(remembered, student),
        "students_per_teacher_by_flops": by_flops,
    }
    return Result("sizing", rounds, rows, figures)


def _count(name: str, blocks: int) -> int:
    return min(blocks, LARGE_BLOCKS) if name.startswith("dense") else blocks


def _ratio(upper: list[float], lower: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(upper, lower, strict=True))


def _bytes(service: RealService, name: str, samples: tuple[Sample, ...]) -> dict[str, Value]:
    """Ask through a relay, from an empty Redis; what the Redis grows by is what it keeps for these tokens."""
    service.forget()
    before, tokens = service.remembered_bytes(), sum(len(sample.token_ids) for sample in samples)
    relay = CountingRelay(service.address)
    with TeacherClient(relay.address, timeout_seconds=600) as client:
        asking = Asking(ENCODINGS[name], 1.0, 0, client.describe().fingerprint)
        sent, received = relay.sent, relay.received
        for sample in samples:
            client.answer(asking.request([sample]))
        sent, received = relay.sent - sent, relay.received - received
    relay.close()
    return {
        "what": name,
        "tokens": tokens,
        "network_bytes_per_token": round(received / tokens, 1),
        "asking_bytes_per_token": round(sent / tokens, 2),
        "redis_mb_per_million_tokens": round((service.remembered_bytes() - before) / tokens * MEGA / 1e6, 1),
    }


def _speeds(service: RealService, samples: InMemory, rounds: int, steps: int) -> tuple[dict[str, list[float]], float]:
    """Return tokens a second: computed by the teacher, remembered by it, trained on; and the ratio that FLOPs say."""
    model = load_causal_lm(resolve_model("smollm2"), dtype="float32")
    taught = sum(parameter.numel() for parameter in model.parameters())
    keep_layers(model, KEPT_LAYERS)
    student = CausalLMStudent(model)
    learnt = sum(parameter.numel() for parameter in model.parameters())
    with TeacherClient(service.address, timeout_seconds=600) as client:
        teacher = client.describe()
        asking = Asking(ENCODINGS[TRAINED_ON], 1.0, teacher.vocabulary_size, teacher.fingerprint)
        request = asking.request(samples.samples)
        known = dict(zip(request.sequences, client.answer(request).payloads, strict=True))
        at_hand = DistantTeacher(0.0, known, teacher)
        tokens_of_one = len(samples[0].token_ids)
        tokens = len(samples) * tokens_of_one

        def trained() -> float:
            done = train(student, cast("Samples", samples), at_hand, asking, prefetch_steps=2, num_steps=steps)
            return BATCH * tokens_of_one / done.step_seconds

        speeds: dict[str, list[float]] = {"teacher computes": [], "teacher remembers": [], "student trains": []}
        for _ in range(rounds):
            service.forget()
            speeds["teacher computes"].append(tokens / seconds_of(lambda: client.answer(request)))
            speeds["teacher remembers"].append(tokens / seconds_of(lambda: client.answer(request)))
            speeds["student trains"].append(trained())
    return speeds, 6 * learnt / (2 * taught)


def _samples(count: int, tokens: int) -> InMemory:
    text = "\n".join(pydoc_data.topics.topics.values())[: 2 * CHARACTERS_PER_TOKEN * tokens * count]
    ids = load_tokenizer(resolve_model("smollm2"))(text)["input_ids"]
    blocks = (ids[start : start + tokens] for start in range(0, count * tokens, tokens))
    return InMemory(tuple(whole_sample(np.array(block, dtype=np.uint32)) for block in blocks))
