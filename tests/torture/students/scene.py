"""What a run needs and runs share: a corpus, a configuration of the student, a teacher with its Valkey, a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.torture.students.services import Teacher, Valkey

STEPS = 24
SAVE_STEPS = 4
EVAL_STEPS = 6


@dataclass(frozen=True)
class Scene:
    """Where things are. The teacher and its Valkey run; whoever kills them brings them back."""

    folder: Path
    corpus: Path
    student_config: Path
    tokenizer: Path
    teacher: Teacher
    valkey: Valkey

    def recipe(self, path: Path, **keys: Any) -> Path:
        """Write a recipe of a short run, with these keys over the defaults; return its path."""
        data = {"sources": [str(self.corpus)], "text_separator": "\n\n", "block_size": 24, "held_out_samples": 20}
        content = {
            "teacher": self.teacher.address,
            "tokenizer": str(self.tokenizer),
            "student": {"kind": "causal_lm", "config": str(self.student_config)},
            "max_steps": STEPS,
            "save_steps": SAVE_STEPS,
            "eval_steps": EVAL_STEPS,
            "save_total_limit": 3,
            "global_batch_size": 10,  # no multiple of the parts: some are larger than others
            "learning_rate": 3e-3,
            "warmup_steps": 3,
            "weight_decay": 0.01,
            "alpha": 0.3,
            "temperature": 2.0,
            "torch_threads": 1,
            # By default none, beside a teacher on this host. With some on their way, to come and go is harder.
            "prefetch_steps": 2,
            "http_port": 0,
            "sample_log": True,
            "step_timeout_seconds": 20,
            "request_timeout_seconds": 20,
            "teacher_wait_seconds": 120,
            **keys,
        }
        content["data"] = {**data, **keys.get("data", {})}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    def restore(self) -> None:
        """Bring back what a test has left dead, and forget all answers."""
        self.valkey.restore()
        self.teacher.restore()
        self.valkey.empty()

    @property
    def environment(self) -> dict[str, str]:
        """What every worker finds in its environment: one thread, a cache folder, no window into the outside."""
        return {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(self.folder / "cache")}


@contextmanager
def set_scene(folder: Path, teacher_model: Path) -> Iterator[Scene]:
    """Make everything, and end what was started."""
    corpus = folder / "corpus.txt"
    write_corpus(corpus)
    config = json.loads((teacher_model / "config.json").read_text(encoding="utf-8"))
    # Dropout: what is random must not depend on who computes it.
    config |= {"num_hidden_layers": 1, "attention_dropout": 0.1}
    student = folder / "student" / "config.json"
    student.parent.mkdir()
    student.write_text(json.dumps(config), encoding="utf-8")
    valkey = Valkey(folder / "valkey")
    teacher = Teacher(folder / "teacher", teacher_model, valkey.url)
    try:
        valkey.start()
        teacher.start()
        yield Scene(folder, corpus, student, teacher_model, teacher, valkey)
    finally:
        teacher.stop()
        valkey.stop()


def write_corpus(path: Path, seed: int = 0) -> None:
    """Write a text of many short documents; another seed, another text of the same size."""
    texts = (
        f"run {i}: {(i * 7 + seed) % 31} litres pass {'slowly ' * (i % 5)}through still {i % 4}" for i in range(80)
    )
    path.write_text("\n\n".join(texts), encoding="utf-8")
