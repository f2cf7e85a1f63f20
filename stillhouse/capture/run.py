"""One capture from its settings to its exit code: find out, say what it takes, ask, write, finish.

SIGTERM and SIGINT end it with 143 once the answers that have come are written; what was asked for is asked again by the
same command, which goes on where this one stood.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import get_args

import structlog
from rich.console import Console

from stillhouse.capture.asking_ahead import Bounds, answers, questions
from stillhouse.capture.checked import Checked, Corpus, check_capture, check_teacher
from stillhouse.capture.own_teacher import OwnTeacher, own_teacher
from stillhouse.capture.probe import check_disk, make_estimate, take_probe
from stillhouse.capture.progress import CaptureProgress
from stillhouse.capture.said import say_before, say_done
from stillhouse.capture.settings import OWN_TEACHER, CaptureSettings
from stillhouse.cli.main import EXIT_DONE, EXIT_INTERRUPTED
from stillhouse.client import TeacherClient
from stillhouse.credentials import credentials_for
from stillhouse.data import PackedDataset
from stillhouse.data.preparation import check_sources
from stillhouse.disk import folder_bytes, free_disk
from stillhouse.encodings import Encoding, Hidden
from stillhouse.errors import FingerprintMismatchError, StoreError
from stillhouse.logs import configure_logging
from stillhouse.models import silence_transformers
from stillhouse.patience import AWAY, CLIENT_ATTEMPTS, Interrupted, PatientTeacher, TeacherAwayError
from stillhouse.request import TeacherDescription
from stillhouse.stopping import stop_on_signals
from stillhouse.store import Manifest, StoreWriter, open_store
from stillhouse.store.files import CAPTURE, MANIFEST
from stillhouse.store.folders import check_place

EXIT_START_AGAIN = 1
"""The teacher was away for longer than the capture waits: the same command goes on once it is back."""

PROMPT_SECONDS = 10.0
"""How soon a teacher must answer about a store that is complete: its word is welcome, and not waited for."""

_log = structlog.get_logger(__name__)


def run(settings: CaptureSettings) -> int:
    """Capture; return the exit code.

    Raises:
        StillhouseError: what stopped it; the answers that came before are kept.
    """
    configure_logging()
    silence_transformers()
    with ExitStack() as open_parts:
        capture = _Capture(settings, open_parts)
        try:
            return capture.run()
        except Interrupted:
            return EXIT_INTERRUPTED
        except TeacherAwayError as error:
            if not capture.has_begun:
                raise  # an address where nobody has ever answered is a wrong one, as far as anybody can tell
            _log.error("teacher_away", reason=str(error))
            return EXIT_START_AGAIN
        except FingerprintMismatchError as error:
            raise StoreError(
                f"the teacher has changed since this capture began: {error}. {settings.output_dir} keeps the earlier "
                "one's answers: serve that teacher and run the same command again, or capture into another folder"
            ) from error


class _Capture:
    """The life of one capture."""

    def __init__(self, settings: CaptureSettings, open_parts: ExitStack) -> None:
        self._settings = settings
        self._open_parts = open_parts
        self._console = Console(soft_wrap=True, highlight=False)
        self._bars = Console(stderr=True)
        self._stopping = threading.Event()
        self._own: OwnTeacher | None = None
        self._corpus: Corpus | None = None
        self._bounds = Bounds(settings.max_request_tokens, settings.max_concurrent_requests, settings.max_held_bytes)

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to go on from."""
        return (self._settings.output_dir / CAPTURE).exists()

    def run(self) -> int:
        settings = self._settings
        check_place(settings.output_dir)
        if (settings.output_dir / MANIFEST).exists():
            return self._was_complete()
        if settings.starts_teacher:
            _ = self._corpus_of(settings.model or str(settings.backend)).prepared  # its faults are told before a start
            flags = {name: getattr(settings, name) for name in OWN_TEACHER}
            self._own = self._open_parts.enter_context(own_teacher(flags))
        else:
            check_sources(settings.data)
        client = self._client(settings.request_timeout_seconds)
        teacher = PatientTeacher(client, settings.teacher_wait_seconds, self._stopping)
        description = teacher.call(lambda: client.describe(include_tokens=True))
        checked = self._check(description)
        has_head = isinstance(checked.asking.encoding, Hidden) and (self.has_begun or not settings.dry_run)
        head = teacher.call(client.output_head) if has_head else None

        def open_writer() -> StoreWriter:
            tokens, plan = description.tokens, checked.plan
            writer = StoreWriter(settings.output_dir, plan, settings.part, tokens=tokens, output_head=head)
            return self._open_parts.enter_context(writer)

        # A folder of another command is refused before anything is asked; a new one is not made before all is known.
        writer = open_writer() if self.has_begun else None
        about = self._say_before(checked, writer, teacher)
        if settings.dry_run:
            return EXIT_DONE
        writer = writer or open_writer()
        began = time.monotonic()
        manifest = self._fill(checked, writer, teacher, about)
        say_done(self._console, str(settings.output_dir), manifest, before=False, seconds=time.monotonic() - began)
        return EXIT_DONE

    def _was_complete(self) -> int:
        """See that a complete store is what is asked for, with its teacher's word where that is to be had at once."""
        settings = self._settings
        with closing(open_store(settings.output_dir, allow_partial=True)) as store:
            # With another encoding the refusal should name both, not what the store has no answers for.
            description, head = replace(store.describe(), encodings=get_args(Encoding)), store.output_head()
        if settings.model not in (None, description.model):
            raise StoreError(
                f"{settings.output_dir} holds the answers of {description.model}, not of {settings.model}; name "
                "another folder"
            )
        if settings.teacher is not None:
            client = self._client(PROMPT_SECONDS)
            try:
                description = client.describe(include_tokens=True)
            except AWAY:
                _log.info("teacher_not_asked", reason="it is away, and the store is complete")
        checked = self._check(description)
        writer = StoreWriter(settings.output_dir, checked.plan, settings.part, output_head=head)
        self._open_parts.enter_context(writer)
        say_done(self._console, str(settings.output_dir), writer.finish(), before=True)
        return EXIT_DONE

    def _client(self, timeout_seconds: float) -> TeacherClient:
        settings, own = self._settings, self._own
        token = settings.teacher_token.get_secret_value() if settings.teacher_token else None
        address = own.address if own else str(settings.teacher)
        client = TeacherClient(
            address,
            token=own.token if own else token,
            timeout_seconds=timeout_seconds,
            max_attempts=CLIENT_ATTEMPTS,
            credentials=credentials_for(
                address, settings.teacher_ca, settings.teacher_certificate, settings.teacher_key
            ),
        )
        self._open_parts.callback(client.close)
        return client

    def _corpus_of(self, teacher_model: str) -> Corpus:
        if self._corpus is None:
            self._corpus = Corpus(self._settings, teacher_model, self._bars)
        return self._corpus

    def _check(self, description: TeacherDescription) -> Checked:
        check_teacher(self._settings, description)
        return check_capture(self._settings, self._corpus_of(description.model), description)

    def _say_before(self, checked: Checked, writer: StoreWriter | None, teacher: PatientTeacher) -> float:
        """Say what is left to do, and see that there is room; return about how many bytes a token takes."""
        settings = self._settings
        left: dict[PackedDataset, int] = {}
        for dataset in checked.datasets:
            shards = checked.plan.shards_of(dataset.name, settings.part)
            count = sum(len(checked.plan.samples_of(dataset.name, shard)) for shard in shards)
            left[dataset] = count - (writer.num_done(dataset.name) if writer else 0)
        some = next((dataset for dataset, count in left.items() if count), None)
        if some is None:
            return 0.0  # what is left is to write the manifest
        indices = writer.missing(some.name) if writer else _samples(checked, some, settings.part)
        estimate = make_estimate(checked, left, take_probe(checked, some, indices, teacher.answer))
        free = free_disk(settings.output_dir)
        say_before(self._console, checked, settings.part, left, estimate, free)
        if not settings.dry_run:
            check_disk(estimate, free, str(settings.output_dir))
        return estimate.bytes_per_token

    def _fill(self, checked: Checked, writer: StoreWriter, teacher: PatientTeacher, about: float) -> Manifest:
        datasets = checked.datasets
        total, done = (
            sum(count(dataset.name) * dataset.block_size for dataset in datasets)
            for count in (writer.num_samples, writer.num_done)
        )
        asked = (
            question
            for dataset in datasets
            for question in questions(
                dataset, writer.missing(dataset.name), checked.asking, checked.teacher, self._bounds
            )
        )
        with (
            stop_on_signals(self._stopping),
            CaptureProgress(self._bars, total, done, _sizes(checked, writer, about)) as progress,
        ):
            try:
                for question, answer in answers(asked, teacher.answer, self._bounds, self._look):
                    for index, sample, payload in zip(question.indices, question.samples, answer.payloads, strict=True):
                        writer.add(question.part, index, sample, payload)
                    progress.add(question.num_tokens)
            finally:
                self._stopping.set()  # whoever waits for the teacher in another thread need wait no longer
        return writer.finish()

    def _look(self) -> None:
        if self._stopping.is_set():
            raise Interrupted
        if self._own is not None:
            self._own.check()


def _samples(checked: Checked, dataset: PackedDataset, share: tuple[int, int]) -> Iterator[int]:
    for shard in checked.plan.shards_of(dataset.name, share):
        yield from checked.plan.samples_of(dataset.name, shard)


def _sizes(checked: Checked, writer: StoreWriter, about: float) -> Callable[[], tuple[int, float]]:
    """Return what says how much is on the disk, and what a token of a complete shard takes, `about` without one."""

    def sizes() -> tuple[int, float]:
        shards = [path for dataset in checked.datasets for path in (writer.folder / dataset.name).glob("*.parquet")]
        tokens = sum(len(_samples_of(checked, path)) for path in shards) * checked.plan.block_size
        num_bytes = sum(path.stat().st_size for path in shards)
        return folder_bytes(writer.folder), num_bytes / tokens if tokens else about

    return sizes


def _samples_of(checked: Checked, shard: Path) -> range:
    name = next(dataset.name for dataset in checked.datasets if dataset.name == shard.parent.name)
    return checked.plan.samples_of(name, int(shard.stem))
