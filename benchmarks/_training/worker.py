"""One worker of the benchmark `training`, on one core: joins the others, says so, waits for a line, and trains.

    python -m benchmarks._training.worker CORE WORLD LIGHTHOUSE QUICK FILE

Writes JSON to the file: seconds a step, what they were spent on, and what the weights came to.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks._training.loop import DistantTeacher, random_samples, small_llama, train
from stillhouse.asking import Asking
from stillhouse.encodings import Sampled
from stillhouse.fingerprint import weights_fingerprint
from stillhouse.fixtures import FixtureTeacher
from student_worker.corpus import Samples
from student_worker.elastic.elastic_group import ElasticGroup
from student_worker.elastic.group import Group, SoloGroup
from student_worker.state import WorkerState

VOCABULARY, BLOCK = 4096, 128
HIDDEN, LAYERS = 384, 4
BATCH, BATCH_QUICK, MICRO_SHARDS = 32, 4, 4
STEPS, STEPS_QUICK = 3, 1
ENCODING = Sampled(50)
PREFETCH_STEPS = 1
TOKEN = "training"  # noqa: S105 - of a run on one machine, for a minute


def main() -> None:
    """Train."""
    core, world, lighthouse, quick = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], bool(int(sys.argv[4]))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    batch = BATCH_QUICK if quick else BATCH
    samples = random_samples(2 * batch, BLOCK, VOCABULARY)
    teacher = FixtureTeacher(VOCABULARY)
    asking = Asking(ENCODING, 1.0, VOCABULARY, teacher.describe().fingerprint)
    request = asking.request(samples.samples)
    known = dict(zip(request.sequences, teacher.answer(request).payloads, strict=True))

    def join(state: WorkerState) -> Group:
        group: Group = SoloGroup(state)
        if world > 1:
            group = ElasticGroup(
                state,
                lighthouse=lighthouse,
                worker_id=f"worker-{core}",
                token=TOKEN,
                run={},
                max_workers=world,
                timeout_seconds=120.0,
            )
        print("joined", flush=True)
        sys.stdin.readline()
        return group

    student = small_llama(VOCABULARY, hidden=HIDDEN, layers=LAYERS)
    trained = train(
        student,
        cast("Samples", samples),
        DistantTeacher(0.0, known, teacher.describe()),
        asking,
        prefetch_steps=PREFETCH_STEPS,
        num_steps=STEPS_QUICK if quick else STEPS,
        batch=batch,
        micro_shards=MICRO_SHARDS,
        join=join,
    )
    assert trained.world_size == world, f"{trained.world_size} workers took part, not {world}"
    told: dict[str, Any] = {"step_seconds": trained.step_seconds, "tokens": batch * BLOCK, "phases": trained.phases}
    told["weights"] = weights_fingerprint(student.module.state_dict())
    Path(sys.argv[5]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
    # Not sys.exit: taking the interpreter apart takes torch two seconds, and nothing here is left to close.
    os._exit(0)
