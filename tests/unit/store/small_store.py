"""A small corpus of made-up tokens, and a store that a fixture teacher fills from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.data import DataSpec, Prepared, prepare
from stillhouse.encodings import Encoding, Sampled
from stillhouse.fixtures import FixtureTeacher
from stillhouse.providers import TeacherLogitsProvider
from stillhouse.request import LogitsRequest
from stillhouse.store import Manifest, StorePlan, StoreWriter, asked_sequence

VOCABULARY = 50
BLOCK_SIZE = 16
END = 0


def small_corpus(folder: Path, *, tokens: int = 600, held_out: int | None = 5) -> tuple[Prepared, DataSpec]:
    """Return a corpus of documents of all lengths, packed into blocks of 16 tokens."""
    generator = np.random.default_rng(7)
    ids = generator.integers(1, VOCABULARY, tokens, dtype=np.uint32)
    ids[np.cumsum(generator.integers(5, 40, tokens // 10))[: tokens // 20] % tokens] = END
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.bin").write_bytes(ids.tobytes())
    spec = DataSpec(
        sources=(str(folder / "corpus.bin"),),
        boundary_token_id=END,
        block_size=BLOCK_SIZE,
        held_out_samples=held_out,
    )
    return prepare(spec, None, folder / "cache"), spec


def plan_of(
    corpus: tuple[Prepared, DataSpec], encoding: Encoding | None = None, teacher: Any = None, **values: Any
) -> StorePlan:
    """Return a plan for the corpus, with shards of four samples."""
    description = (teacher or FixtureTeacher(VOCABULARY)).describe()
    values = {"samples_per_shard": 4, **values}
    return StorePlan.of(*corpus, description, encoding=encoding or Sampled(8), **values)


def fill(
    writer: StoreWriter, corpus: tuple[Prepared, DataSpec], teacher: TeacherLogitsProvider, *, most: int | None = None
) -> int:
    """Ask about what is missing, at most so many samples, and return how many that were."""
    done = 0
    for name in writer.plan.parts:
        dataset = getattr(corpus[0], name)
        for index in writer.missing(name):
            if done == most:
                return done
            sample = dataset[index]
            request = LogitsRequest(
                (asked_sequence(sample),),
                writer.plan.answer_encoding,
                temperature=writer.plan.temperature,
                vocabulary_size=writer.plan.vocabulary_size,
            )
            writer.add(name, index, sample, teacher.answer(request).payloads[0])
            done += 1
    return done


def make_store(
    folder: Path,
    corpus: tuple[Prepared, DataSpec],
    encoding: Encoding | None = None,
    *,
    share: tuple[int, int] = (0, 1),
    teacher: TeacherLogitsProvider | None = None,
    **values: Any,
) -> Manifest:
    """Fill a store, or a share of one, and return its manifest."""
    teacher = teacher or FixtureTeacher(VOCABULARY)
    plan = plan_of(corpus, encoding, teacher, **values)
    head = teacher.output_head() if plan.encoding.startswith("hidden") else None
    with StoreWriter(folder, plan, share, tokens=teacher.describe().tokens, output_head=head) as writer:
        fill(writer, corpus, teacher)
        return writer.finish()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
