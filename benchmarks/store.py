"""How many bytes a token takes in an offline store, and how quickly is one opened and read at random?

Bytes: the real SmolLM2's answers in float32 at T = 1 about the text of Python's own help topics, in blocks of 1,024
tokens; every byte of the folder over its tokens, ids, labels and the teacher's tokens included, and for HIDDEN the
output head counted apart. Beside them what the same answers take as opaque bytes of the codec.

Reading: 10 million synthetic samples of 4 tokens, of which a process of its own reads some at random, in turns with
pyarrow alone, which only decodes the row group in which each lies.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks._result import Result, Value
from stillhouse.asking import asked_sequence
from stillhouse.codec import encode_payload
from stillhouse.data import DataSpec, Prepared, Sample, prepare
from stillhouse.data.dataset import Part
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.fingerprint import tokens_fingerprint
from stillhouse.fixtures import FixtureTeacher
from stillhouse.models import load_causal_lm, load_tokenizer, resolve_model
from stillhouse.payloads import Payload
from stillhouse.request import Limits, TeacherDescription
from stillhouse.store import Manifest, Shard, StorePlan, StoreWriter, TeacherIdentity
from stillhouse.store.checking import file_entry
from stillhouse.store.columns import payload_arrays, sample_arrays
from stillhouse.store.files import OUTPUT_HEAD
from stillhouse.store.shard import WRITER, parquet_settings, shard_name, shard_schema
from stillhouse.version import __version__
from stillhouse.vocabulary import tokenizer_tokens
from teacher_service.backends.transformers import TransformersBackend

BLOCK_SIZE = 1024
HEAD_CHUNK_ROWS = 256
CHARACTERS_PER_TOKEN = 4

ENCODINGS: dict[str, Encoding] = {
    "sampled 50": Sampled(50),
    "top-12": TopK(12),
    "top-64": TopK(64),
    "top-64 f32": TopK(64, "float32"),
    "hidden bf16": Hidden("bfloat16"),
    "hidden f32": Hidden("float32"),
}
LARGE: dict[str, Encoding] = {"dense bf16": Dense("bfloat16")}
LARGE_SAMPLES = 2
"""Of forms that take a hundred KB a token."""

SAMPLES, SAMPLES_QUICK = 32, 2
SYNTHETIC, SYNTHETIC_QUICK = 10_000_000, 200_000
SYNTHETIC_BLOCK = 4
SYNTHETIC_DRAWS = 4
SYNTHETIC_VOCABULARY = 1000
SAMPLES_PER_SHARD = 8192
READS, READS_QUICK = 4000, 400


def measure(quick: bool) -> Result:
    """Measure both; quick: 2 samples of real text and 200,000 synthetic ones.

    Figures: bytes per token of whole folders of some 33,000 tokens (quick: 2,000, to which the teacher's tokens and the
    footers add more each); seconds to open 10 million samples; the reader's resident memory in MB, of which
    `imported_mb` in the table is Python's with torch and pyarrow; and the time of a random read over that of pyarrow
    alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = _sizes(Path(folder), SAMPLES_QUICK if quick else SAMPLES)
        reading = _reading(Path(folder) / "synthetic", quick)
    sizes = {row["encoding"]: float(row["bytes_per_token"] or 0) for row in rows}
    figures = {
        "sampled50_bytes_per_token": sizes["sampled 50"],
        "topk64_bytes_per_token": sizes["top-64"],
        "hidden_bf16_bytes_per_token": sizes["hidden bf16"],
        "open_seconds": float(reading["open_seconds"]),
        "resident_mb": float(reading["resident_mb"]),
        "random_read_over_pyarrow": float(reading["read_over_plain"]),
    }
    shown: dict[str, Value] = {"encoding": f"sampled {SYNTHETIC_DRAWS}, synthetic"}
    shown.update({name: round(float(value), 3) for name, value in reading.items()})
    return Result("store", 1, [*rows, shown], figures)


def _sizes(folder: Path, samples: int) -> list[dict[str, Value]]:
    teacher = _Teacher()
    rows = teacher.rows(folder / "most", ENCODINGS, samples)
    return rows + teacher.rows(folder / "large", LARGE, LARGE_SAMPLES)


class _Teacher:
    """The real teacher, which is asked about the same text for every encoding."""

    def __init__(self) -> None:
        model = resolve_model("smollm2")
        self._tokenizer = load_tokenizer(model)
        self._backend = TransformersBackend(load_causal_lm(model, dtype="float32"), name="smollm2")
        self._tokens = tokenizer_tokens(self._tokenizer)

    def rows(self, folder: Path, encodings: dict[str, Encoding], samples: int) -> list[dict[str, Value]]:
        """Fill a store for each encoding, and return what it takes."""
        prepared, spec = self._corpus(folder, samples)
        opaque = dict.fromkeys(encodings, 0)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(self._writer(folder / name.replace(" ", "-"), prepared, spec, encoding))
                for name, encoding in encodings.items()
            }
            for index, sample in enumerate(prepared.train):
                hidden = self._backend.forward([asked_sequence(sample)]).rows[0]
                logits = [self._backend.head(rows) for rows in torch.split(hidden, HEAD_CHUNK_ROWS)]
                for name, writer in writers.items():
                    payload = self._answer(sample, encodings[name], hidden, logits)
                    opaque[name] += len(encode_payload(payload))
                    writer.add("train", index, sample, payload)
            manifests = {name: writer.finish() for name, writer in writers.items()}
        return [
            _row(name, folder / name.replace(" ", "-"), manifest, opaque[name]) for name, manifest in manifests.items()
        ]

    def _corpus(self, folder: Path, samples: int) -> tuple[Prepared, DataSpec]:
        folder.mkdir()
        text = "\n".join(pydoc_data.topics.topics.values())[: 2 * CHARACTERS_PER_TOKEN * BLOCK_SIZE * samples]
        ids = self._tokenizer(text)["input_ids"][: BLOCK_SIZE * samples]
        (folder / "corpus.txt").write_text(str(self._tokenizer.decode(ids)), encoding="utf-8")
        spec = DataSpec(sources=(str(folder / "corpus.txt"),), block_size=BLOCK_SIZE)
        return prepare(spec, self._tokenizer, folder / "cache"), spec

    def _writer(self, place: Path, prepared: Prepared, spec: DataSpec, encoding: Encoding) -> StoreWriter:
        plan = StorePlan.of(prepared, spec, self._describe(), encoding=encoding)
        head = self._backend.output_head() if isinstance(encoding, Hidden) else None
        return StoreWriter(place, plan, tokens=self._tokens, output_head=head)

    def _answer(self, sample: Sample, encoding: Encoding, hidden: Tensor, logits: list[Tensor]) -> Payload:
        if isinstance(encoding, Hidden):
            return encode_hidden(hidden, encoding)
        return encode_logits(
            logits, encoding, sequence=asked_sequence(sample), temperature=1.0, vocabulary_size=logits[0].shape[1]
        )

    def _describe(self) -> TeacherDescription:
        run = self._backend.describe()
        return TeacherDescription(
            model=run.model,
            fingerprint=run.fingerprint,
            weights_fingerprint=run.weights_fingerprint,
            tokenizer_fingerprint=tokens_fingerprint(self._tokens),
            vocabulary_size=run.vocabulary_size,
            tokenizer_size=len(self._tokens),
            hidden_size=run.hidden_size,
            encodings=(Dense, Hidden, TopK, Sampled),
            limits=Limits(),
            compute_dtype=run.compute_dtype,
            mode=run.mode,
            version=__version__,
            tokens=self._tokens,
        )


def _row(name: str, place: Path, manifest: Manifest, opaque: int) -> dict[str, Value]:
    num_bytes = {path.name: path.stat().st_size for path in place.rglob("*") if path.is_file()}
    head = num_bytes.pop(OUTPUT_HEAD, 0)
    tokens = sum(shard.tokens for shard in manifest.shards["train"])
    shards = sum(shard.bytes for shard in manifest.shards["train"])
    return {
        "encoding": name,
        "tokens": tokens,
        "bytes_per_token": round(sum(num_bytes.values()) / tokens, 2),
        "shards_per_token": round(shards / tokens, 2),
        "codec_per_token": round(opaque / tokens, 2),
        "head_mb": round(head / 1e6, 1),
    }


def _reading(folder: Path, quick: bool) -> dict[str, float]:
    _write_synthetic(folder, SYNTHETIC_QUICK if quick else SYNTHETIC)
    command = [sys.executable, "-m", "benchmarks._store_reader", str(folder)]
    command += [str(READS_QUICK if quick else READS), "0"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _write_synthetic(folder: Path, samples: int) -> None:
    """Write shards in bulk: one row group's answers over and over, each sample under an index of its own."""
    plan = _synthetic_plan(samples)
    schema, settings = shard_schema(plan), parquet_settings(shard_schema(plan))
    group = _group(plan)
    entries = []
    (folder / "train").mkdir(parents=True)
    for number in range(plan.num_shards("train")):
        place = folder / shard_name("train", number)
        indices = plan.samples_of("train", number)
        with pq.ParquetWriter(place, schema, **settings) as writer:
            for start in range(indices.start, indices.stop, plan.samples_per_group):
                rows = min(plan.samples_per_group, indices.stop - start)
                index = pa.array(np.arange(start, start + rows, dtype=np.int64))
                columns = [index, *(column.slice(0, rows) for column in group[1:])]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows)
        written, tokens = file_entry(place), len(indices) * SYNTHETIC_BLOCK
        entries.append(
            Shard(
                samples=len(indices),
                tokens=tokens,
                positions=tokens,
                bytes=written.bytes,
                checksum=written.checksum,
            )
        )
    manifest = Manifest(plan=plan, shards={"train": tuple(entries)})
    (folder / "manifest.json").write_bytes(manifest.to_json())


def _synthetic_plan(samples: int) -> StorePlan:
    description = FixtureTeacher(SYNTHETIC_VOCABULARY).describe()
    tokens = samples * SYNTHETIC_BLOCK
    return StorePlan(
        writer=WRITER,
        teacher=TeacherIdentity.of(description),
        encoding=f"sampled:{SYNTHETIC_DRAWS}:0",
        temperature=1.0,
        vocabulary_size=SYNTHETIC_VOCABULARY,
        tokenizer_fingerprint="",
        tokenizer_vocabulary_size=SYNTHETIC_VOCABULARY,
        max_token_id=SYNTHETIC_VOCABULARY - 1,
        corpus="synthetic",
        block_size=SYNTHETIC_BLOCK,
        data={},
        train=Part(
            fingerprint="synthetic",
            num_samples=samples,
            num_documents=samples,
            num_tokens=tokens,
            num_learnt=tokens,
            skipped_samples=0,
        ),
        held_out=None,
        samples_per_shard=SAMPLES_PER_SHARD,
        samples_per_group=512,
    )


def _group(plan: StorePlan) -> list[pa.Array]:
    generator = np.random.default_rng(0)
    samples, payloads = [], []
    for _ in range(plan.samples_per_group):
        ids = generator.integers(0, SYNTHETIC_VOCABULARY, SYNTHETIC_BLOCK, dtype=np.uint32)
        labels, mask = ids.astype(np.int64), np.ones(SYNTHETIC_BLOCK, np.bool_)
        sample = Sample(ids, labels, mask, (SYNTHETIC_BLOCK,))
        logits = torch.from_numpy(generator.normal(size=(SYNTHETIC_BLOCK, SYNTHETIC_VOCABULARY)))
        payloads.append(
            encode_logits(
                [logits.float()],
                plan.answer_encoding,
                sequence=asked_sequence(sample),
                temperature=1.0,
                vocabulary_size=SYNTHETIC_VOCABULARY,
            )
        )
        samples.append(sample)
    return [*sample_arrays(range(len(samples)), samples), *payload_arrays(payloads, plan.answer_encoding)]
