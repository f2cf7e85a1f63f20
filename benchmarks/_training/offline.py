"""Training from a store beside training on cross-entropy alone: the same student, samples, order and loop."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks._result import Value
from benchmarks._training.loop import BATCH, Trained, small_llama, step_ratio, train, training_row
from stillhouse.asking import Asking
from stillhouse.data import DataSpec, prepare
from stillhouse.encodings import Sampled
from stillhouse.fixtures import FixtureTeacher
from stillhouse.store import StorePlan, StoreWriter, open_store
from stillhouse.store.teacher import StoreTeacher
from student_worker.corpus import Samples, prepared_corpus, stored_corpus

VOCABULARY, BLOCK, SAMPLES = 16_384, 128, 64
HIDDEN, LAYERS = 384, 4
"""Small beside any student in use: the less its body computes, the more the loss and the reading weigh."""
ENCODING = Sampled(50)
PREFETCH_STEPS = 2


def measure_offline(quick: bool) -> tuple[list[dict[str, Value]], float]:
    """Return a row for each contestant, and how many tokens a second training from the store does over the other.

    The figure is the median of the rounds' ratios of the median step: in each round both train, one after the other,
    from the same first weights.
    """
    rounds, steps = (1, 2) if quick else (3, 6)
    names = ("cross-entropy alone", "from the store")
    measured: dict[str, list[Trained]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as name:
        plain, stored, teacher = _capture(Path(name))
        asking = Asking(ENCODING, 1.0, VOCABULARY, teacher.describe().fingerprint)
        contestants = {names[0]: (plain, None), names[1]: (stored, teacher)}
        for number in range(rounds):
            order = names if number % 2 == 0 else names[::-1]
            for contestant in order:
                samples, answers = contestants[contestant]
                student = small_llama(VOCABULARY, hidden=HIDDEN, layers=LAYERS)
                trained = train(student, samples, answers, asking, prefetch_steps=PREFETCH_STEPS, num_steps=steps)
                measured[contestant].append(trained)
    rows = [training_row(contestant, runs, BATCH * BLOCK) for contestant, runs in measured.items()]
    return rows, step_ratio(*measured.values())


def _capture(folder: Path) -> tuple[Samples, Samples, StoreTeacher]:
    """Return samples as they are prepared, the same out of a store, and that store's answers."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, BLOCK * SAMPLES, dtype=np.uint32)
    (folder / "ids.bin").write_bytes(ids.tobytes())
    spec = DataSpec(sources=(str(folder / "ids.bin"),), block_size=BLOCK)
    prepared = prepare(spec, None, folder / "cache")
    teacher = FixtureTeacher(VOCABULARY)
    plan = StorePlan.of(prepared, spec, teacher.describe(), encoding=ENCODING)
    asking = Asking(ENCODING, 1.0, VOCABULARY, teacher.describe().fingerprint)
    with StoreWriter(folder / "store", plan) as writer:
        for index in writer.missing("train"):
            sample = prepared.train[index]
            writer.add("train", index, sample, teacher.answer(asking.request([sample])).payloads[0])
        writer.finish()
    store = open_store(folder / "store")
    return prepared_corpus(prepared).train, stored_corpus(store).train, StoreTeacher(store)
