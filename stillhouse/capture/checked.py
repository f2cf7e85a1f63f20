"""What a capture checks before it asks anything, the cheapest first, and what it then knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from stillhouse.asking import Asking
from stillhouse.capture.settings import CaptureSettings
from stillhouse.cli.data_view import preparing
from stillhouse.cli.named_tokenizer import open_tokenizer
from stillhouse.data import Prepared, prepare
from stillhouse.encoding_choice import offered_encoding, warn_of_noise
from stillhouse.errors import ConfigurationError, DataError, RequestTooLongError
from stillhouse.models import load_tokenizer, resolve_model
from stillhouse.pairing import paired_vocabulary
from stillhouse.request import TeacherDescription
from stillhouse.store import StorePlan
from stillhouse.vocabulary import check_token_ids


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus, and the tokenizer that made its ids; None where they came as shards of ids."""

    prepared: Prepared
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class Checked:
    """A capture whose parts fit together."""

    corpus: Corpus
    teacher: TeacherDescription
    asking: Asking
    plan: StorePlan


def open_corpus(settings: CaptureSettings, teacher_model: str, console: Console) -> Corpus:
    """Prepare the corpus as training does, where that has not been done before.

    Raises:
        ConfigurationError: a tokenizer that cannot be had.
        DataError: a corpus that cannot be used.
    """
    tokenizer, missing = _find_tokenizer(settings, teacher_model)
    try:
        with preparing(console) as progress:
            return Corpus(prepare(settings.data, tokenizer, settings.cache_dir, progress), tokenizer)
    except DataError as error:
        if missing is None:
            raise
        raise ConfigurationError(
            f"tokenizer is not named, and the teacher's is not to be had here ({missing}); name one by --tokenizer "
            f"({error})"
        ) from error


def _find_tokenizer(settings: CaptureSettings, teacher_model: str) -> tuple[Any, ConfigurationError | None]:
    """Return the tokenizer that is named, else the teacher's, else none, and why not: shards of ids need none."""
    if settings.tokenizer is not None:
        return open_tokenizer(settings.tokenizer), None
    try:
        return load_tokenizer(resolve_model(teacher_model, revision=settings.revision)), None
    except ConfigurationError as error:
        return None, error


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
    """Return what is captured.

    Raises:
        ConfigurationError: what `check_teacher` refuses.
        VocabularyMismatchError: the corpus' tokenizer is not the teacher's.
        DataError: ids beyond the vocabulary that both share.
    """
    check_teacher(settings, teacher)
    size = paired_vocabulary(teacher, corpus.tokenizer)
    check_token_ids(corpus.prepared.manifest.max_token_id, size)
    encoding = offered_encoding("encoding", settings.encoding, teacher, size)
    warn_of_noise(encoding, settings.temperature)
    plan = StorePlan.of(
        corpus.prepared,
        settings.data,
        teacher,
        encoding=encoding,
        temperature=settings.temperature,
        vocabulary_size=size,
        samples_per_shard=settings.samples_per_shard,
    )
    asking = Asking(encoding, settings.temperature, size, teacher.fingerprint, settings.cache_mode)
    return Checked(corpus, teacher, asking, plan)
