"""What a capture checks before it asks anything, the cheapest first, and what it then knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.console import Console

from stillhouse.asking import Asking
from stillhouse.capture.settings import CaptureSettings
from stillhouse.cli.data_view import preparing
from stillhouse.cli.named_tokenizer import open_tokenizer
from stillhouse.data import PackedDataset, Prepared, prepare
from stillhouse.encoding_choice import offered_encoding, warn_of_noise
from stillhouse.errors import ConfigurationError, DataError, RequestTooLongError
from stillhouse.models import load_tokenizer, resolve_model
from stillhouse.pairing import paired_vocabulary
from stillhouse.request import TeacherDescription
from stillhouse.store import StorePlan
from stillhouse.vocabulary import check_token_ids


@dataclass(frozen=True, slots=True)
class Checked:
    """A capture whose parts fit together."""

    prepared: Prepared
    teacher: TeacherDescription
    asking: Asking
    plan: StorePlan

    @property
    def datasets(self) -> tuple[PackedDataset, ...]:
        """The parts that there are."""
        parts = (self.prepared.train, self.prepared.held_out)
        return tuple(dataset for dataset in parts if dataset is not None)


class Corpus:
    """The corpus of a capture: its tokenizer first, and then its samples, each looked for once.

    Args:
        settings: of the capture.
        teacher_model: the teacher's name, whose tokenizer is taken where none is named.
        console: where a bar is shown while documents are tokenised.

    Raises:
        ConfigurationError: a tokenizer that is named and cannot be had.
    """

    def __init__(self, settings: CaptureSettings, teacher_model: str, console: Console) -> None:
        self._settings = settings
        self._console = console
        self.tokenizer: Any = None
        self._missing: ConfigurationError | None = None
        if settings.tokenizer is not None:
            self.tokenizer = open_tokenizer(settings.tokenizer)
            return
        try:
            self.tokenizer = load_tokenizer(resolve_model(teacher_model, revision=settings.revision))
        except ConfigurationError as error:
            self._missing = error  # shards of ids need none

    @cached_property
    def prepared(self) -> Prepared:
        """The samples, prepared as for training, where that has not been done before.

        Raises:
            ConfigurationError: text, and no tokenizer to be had.
            DataError: a corpus that cannot be used.
        """
        try:
            with preparing(self._console) as progress:
                return prepare(self._settings.data, self.tokenizer, self._settings.cache_dir, progress)
        except DataError as error:
            if self._missing is None:
                raise
            raise ConfigurationError(
                f"tokenizer is not named, and the teacher's is not to be had here ({self._missing}); name one by "
                f"--tokenizer ({error})"
            ) from error


def check_teacher(settings: CaptureSettings, teacher: TeacherDescription) -> None:
    """Refuse what needs only the teacher's description to be known as wrong.

    Raises:
        ConfigurationError: a teacher in throughput mode, or an encoding over its limits.
        EncodingNotOfferedError: an encoding that it does not answer with.
        RequestTooLongError: longer samples than it takes.
    """
    if teacher.mode != "deterministic" and not settings.allow_nondeterministic:
        raise ConfigurationError(
            f"the teacher is in {teacher.mode} mode: its answers depend in their last bits on what shares their batch, "
            "so a capture that is interrupted, or split, would not be equal to one that is not; serve it with --mode "
            "deterministic, or give --allow-nondeterministic"
        )
    offered_encoding("encoding", settings.encoding, teacher, teacher.vocabulary_size)
    if settings.data.block_size > teacher.limits.max_sequence_tokens:
        raise RequestTooLongError(
            f"block_size {settings.data.block_size} is over the teacher's limit of "
            f"{teacher.limits.max_sequence_tokens} tokens a sequence; lower it"
        )


def check_capture(settings: CaptureSettings, corpus: Corpus, teacher: TeacherDescription) -> Checked:
    """Return what is captured, from a teacher that `check_teacher` has seen.

    Raises:
        ConfigurationError: a tokenizer that cannot be had, or an encoding that does not fit the shared vocabulary.
        VocabularyMismatchError: the corpus' tokenizer is not the teacher's.
        DataError: ids beyond the vocabulary that both share.
    """
    size = paired_vocabulary(teacher, corpus.tokenizer)
    prepared = corpus.prepared
    check_token_ids(prepared.manifest.max_token_id, size)
    encoding = offered_encoding("encoding", settings.encoding, teacher, size)
    warn_of_noise(encoding, settings.temperature)
    plan = StorePlan.of(
        prepared,
        settings.data,
        teacher,
        encoding=encoding,
        temperature=settings.temperature,
        vocabulary_size=size,
        samples_per_shard=settings.samples_per_shard,
    )
    asking = Asking(encoding, settings.temperature, size, teacher.fingerprint, settings.cache_mode)
    return Checked(prepared, teacher, asking, plan)
