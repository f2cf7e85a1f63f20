"""What a store says of itself: `manifest.json`, and while it is being filled `capture.json`.

docs/store-format.md is the specification. The plan says everything about the answers but the answers themselves, so
that two folders hold parts of one store iff their plans are equal. Neither a time nor a path, host or user stands in
it: the same answers give the same bytes everywhere. Knows nothing of Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from stillhouse.data.dataset import Part, PartName, Prepared
from stillhouse.data.spec import DataSpec
from stillhouse.encoding_text import format_encoding, parse_encoding
from stillhouse.encodings import Encoding, Hidden
from stillhouse.request import Limits, TeacherDescription
from stillhouse.store.sizes import group_samples, shard_samples
from stillhouse.version import __version__

FORMAT_VERSION: Final = 1

PART_NAMES: Final[tuple[PartName, ...]] = ("train", "held_out")

MAX_SAMPLES: Final = 2**48

PLACES_IN_DATA: Final = frozenset({"sources", "held_out_sources", "chat_template"})
"""What of a data spec names files: the corpus' fingerprints say what was in them."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherIdentity(_Model):
    """Who answered, as its description says: see `TeacherDescription`."""

    model: str
    fingerprint: str
    weights_fingerprint: str
    tokenizer_fingerprint: str
    vocabulary_size: int = Field(ge=1, le=2**31)
    tokenizer_size: int = Field(ge=0)
    hidden_size: int = Field(ge=0)
    compute_dtype: str
    mode: str

    @classmethod
    def of(cls, description: TeacherDescription) -> Self:
        """Return what a store keeps of a teacher's description."""
        return cls(**{name: getattr(description, name) for name in cls.model_fields})


class StorePlan(_Model):
    """What a store is to hold: everything of its manifest but what was written."""

    format_version: Literal[1] = FORMAT_VERSION
    writer: str = Field(description="What wrote the files, with its version: another may give other bytes.")
    teacher: TeacherIdentity
    encoding: str = Field(description="The form of the answers, as a flag says it: sampled:50:0.")
    temperature: float = Field(gt=0, allow_inf_nan=False)
    vocabulary_size: int = Field(ge=1, le=2**31, description="N: distributions cover the ids below it.")
    tokenizer_fingerprint: str = Field(description="Of the tokenizer that made the token ids.")
    tokenizer_vocabulary_size: int = Field(ge=1)
    max_token_id: int = Field(ge=0)
    corpus: str = Field(description="The key of the corpus: its sources' content, tokenizer and settings.")
    block_size: int = Field(ge=1)
    data: dict[str, JsonValue] = Field(description="How the corpus was read and packed.")
    train: Part
    held_out: Part | None
    derived_from: str | None = Field(
        default=None, description="The form of the answers that these were made from, where the teacher gave others."
    )
    samples_per_shard: int = Field(ge=1)
    samples_per_group: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if format_encoding(parse_encoding(self.encoding)) != self.encoding:
            raise ValueError(f"encoding must be written out whole; got {self.encoding!r}")
        if self.vocabulary_size > self.teacher.vocabulary_size:
            raise ValueError(
                f"vocabulary_size {self.vocabulary_size} is over the teacher's {self.teacher.vocabulary_size}"
            )
        for name in self.parts:
            if not 1 <= self.part(name).num_samples <= MAX_SAMPLES:
                raise ValueError(
                    f"{name}.num_samples must be from 1 to {MAX_SAMPLES}; got {self.part(name).num_samples}"
                )
        return self

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        spec: DataSpec,
        description: TeacherDescription,
        *,
        encoding: Encoding,
        temperature: float = 1.0,
        vocabulary_size: int = 0,
        samples_per_shard: int | None = None,
    ) -> Self:
        """Return the plan of a store that holds a teacher's answers about a prepared corpus.

        `vocabulary_size` 0 is the teacher's whole vocabulary. `samples_per_shard` is by default as many as make a
        shard of some 2^18 tokens or 64 MiB, whichever is less.
        """
        from stillhouse.store.shard import WRITER

        manifest = prepared.manifest
        size = vocabulary_size or description.vocabulary_size
        shape = (encoding, size, description.hidden_size, manifest.block_size)
        return cls(
            writer=WRITER,
            teacher=TeacherIdentity.of(description),
            encoding=format_encoding(encoding),
            temperature=temperature,
            vocabulary_size=size,
            tokenizer_fingerprint=manifest.tokenizer_fingerprint,
            tokenizer_vocabulary_size=manifest.vocabulary_size,
            max_token_id=manifest.max_token_id,
            corpus=manifest.key,
            block_size=manifest.block_size,
            data=spec.model_dump(mode="json", exclude=set(PLACES_IN_DATA)),
            train=manifest.train,
            held_out=manifest.held_out,
            samples_per_shard=samples_per_shard or shard_samples(*shape),
            samples_per_group=min(group_samples(*shape), samples_per_shard or shard_samples(*shape)),
        )

    @property
    def answer_encoding(self) -> Encoding:
        """The form of the answers."""
        return parse_encoding(self.encoding)

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The names of the parts that there are."""
        return PART_NAMES if self.held_out is not None else PART_NAMES[:1]

    def part(self, name: PartName) -> Part:
        """Return what the plan says of a part.

        Raises:
            KeyError: there is no such part.
        """
        part = self.train if name == "train" else self.held_out
        if part is None:
            raise KeyError(name)
        return part

    def num_shards(self, name: PartName) -> int:
        """Return the number of shards of a part in the whole store."""
        return -(-self.part(name).num_samples // self.samples_per_shard)

    def shards_of(self, name: PartName, share: tuple[int, int]) -> range:
        """Return the numbers of the shards of a part that the i-th of n shares holds; `share` is (i, n), 0 <= i < n."""
        index, count = share
        total = self.num_shards(name)
        return range(index * total // count, (index + 1) * total // count)

    def samples_of(self, name: PartName, shard: int) -> range:
        """Return the indices of a shard's samples within its part."""
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, self.part(name).num_samples))

    def describe(self, tokens: tuple[str, ...] = ()) -> TeacherDescription:
        """Return the teacher's description as it was, of the one encoding that is stored, with limits that fit it."""
        identity = self.teacher.model_dump()
        limits = Limits(max_sequence_tokens=max(Limits().max_sequence_tokens, self.block_size))
        return TeacherDescription(
            **identity, encodings=(type(self.answer_encoding),), limits=limits, version=__version__, tokens=tokens
        )


class WrittenFile(_Model):
    """A file beside the shards: its size, and the BLAKE2b-128 of its bytes."""

    bytes: int = Field(ge=0)
    checksum: str = Field(pattern="^[0-9a-f]{32}$")


class Shard(WrittenFile):
    """A shard: what it holds, its size, and the BLAKE2b-128 of its bytes. `positions` are those with an answer."""

    samples: int = Field(ge=1)
    tokens: int = Field(ge=1)
    positions: int = Field(ge=1)


class Manifest(_Model):
    """What a complete store, or one complete share of it, holds.

    `shards` are in the order of their numbers, from the first that this share holds; `share` (i, n) is (0, 1) for a
    whole store.
    """

    plan: StorePlan
    share: tuple[int, int] = (0, 1)
    shards: dict[PartName, tuple[Shard, ...]]
    tokens: WrittenFile | None = None
    output_head: WrittenFile | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        check_share(self.share)
        if set(self.shards) != set(self.plan.parts):
            raise ValueError(f"shards are of {sorted(self.shards)}, where the parts are {sorted(self.plan.parts)}")
        check_head(self.plan, has_head=self.output_head is not None)
        for name, shards in self.shards.items():
            numbers = self.plan.shards_of(name, self.share)
            if len(shards) != len(numbers):
                raise ValueError(f"{name} has {len(shards)} shards, where the plan makes it {len(numbers)}")
            for number, shard in zip(numbers, shards, strict=True):
                self._check_counts(name, number, shard)
        return self

    def _check_counts(self, name: PartName, number: int, shard: Shard) -> None:
        samples = self.plan.samples_of(name, number)
        most = len(samples) * self.plan.block_size
        is_last = samples.stop == self.plan.part(name).num_samples
        least = most - self.plan.block_size + 1 if is_last else most
        if shard.samples != len(samples) or not least <= shard.tokens <= most or shard.positions > shard.tokens:
            raise ValueError(
                f"{name} shard {number} should hold {len(samples)} samples of {self.plan.block_size} tokens; "
                f"got {shard}"
            )

    @property
    def is_whole(self) -> bool:
        """Whether every shard of the plan is there."""
        return self.share == (0, 1)

    def each_shard(self) -> Iterator[tuple[PartName, int, Shard]]:
        """Yield the part, number and entry of every shard that is there."""
        for name in self.plan.parts:
            yield from (
                (name, n, s) for n, s in zip(self.plan.shards_of(name, self.share), self.shards[name], strict=True)
            )

    def to_json(self) -> bytes:
        """Return the bytes of `manifest.json`."""
        return canonical_json(self)


def canonical_json(model: BaseModel) -> bytes:
    """Return the one form in which a plan or a manifest is written."""
    return (model.model_dump_json(indent=1) + "\n").encode()


def check_share(share: tuple[int, int]) -> None:
    """See that (i, n) is the i-th of n shares, counted from 0.

    Raises:
        ValueError: it is not.
    """
    index, count = share
    if not 0 <= index < count <= 2**31:
        raise ValueError(f"a share i/n has 0 <= i < n; got {index}/{count}")


def check_head(plan: StorePlan, *, has_head: bool) -> None:
    """See that an output head goes with HIDDEN answers, and with no others.

    Raises:
        ValueError: it is missing, or of no use.
    """
    if isinstance(plan.answer_encoding, Hidden) != has_head:
        what = "has no use for" if has_head else "lacks"
        raise ValueError(f"a store of {plan.encoding} answers {what} an output_head: it goes with `Hidden` alone")


def differences(one: BaseModel, other: BaseModel) -> list[str]:
    """Return, for a message, the fields in which two plans differ, with both values.

    What a model is called is no difference: it may be a folder that stands elsewhere on another machine, and its
    fingerprints say whether it is the same.
    """
    ours, theirs = (dict(_flat(model.model_dump(mode="json"))) for model in (one, other))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name) and name != "teacher.model"]
    return [f"{name} is {ours.get(name)!r}, not {theirs.get(name)!r}" for name in names]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
