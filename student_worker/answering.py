"""Who answers a run: a teacher at work, a store, or the store first and the teacher for what is missing.

A store alone needs no network: no channel is opened. Knows nothing of what is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from stillhouse.client import TeacherClient
from stillhouse.credentials import credentials_for
from stillhouse.encoding_choice import AUTO
from stillhouse.encoding_text import parse_encoding
from stillhouse.errors import ConfigurationError
from stillhouse.patience import AWAY
from stillhouse.payloads import OutputHead
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.store import open_store
from stillhouse.store.teacher import StoreFirst, StoreTeacher, check_same_teacher
from student_worker.patience import CLIENT_ATTEMPTS, PatientTeacher
from student_worker.recipe.schema import Recipe

_log = structlog.get_logger(__name__)


class Answering:
    """Asks whomever the recipe names. Use it in `with`, or `close` it.

    Raises:
        StoreError: the store cannot be opened, or is not complete and no teacher is named.
    """

    def __init__(self, recipe: Recipe, stopping: threading.Event) -> None:
        self.stored: StoreTeacher | None = None
        self._client: TeacherClient | None = None
        if recipe.store is not None:
            self.stored = StoreTeacher(open_store(recipe.store, allow_partial=recipe.teacher is not None))
        if recipe.teacher is not None:
            self._client = _client(recipe, recipe.teacher)
        self._provider = _provider(self.stored, self._client)
        self._patient = PatientTeacher(self._provider, recipe.teacher_wait_seconds, stopping)
        self._needs_teacher = not _has_everything(recipe, self.stored)
        self.on_answer: Callable[[Answer], None] | None = None
        """Told of every answer, in the thread that asked for it."""
        self._counts = {"store": 0, "teacher": 0}
        self._counting = threading.Lock()

    def describe(self) -> TeacherDescription:
        """Return what the teacher says of itself, its tokens included.

        Where the store holds all that is trained on, a teacher that is away now is not waited for: that it is the same
        one is seen when it is first asked.

        Raises:
            ConfigurationError: the teacher at work is not the one whose answers the store holds.
            TeacherError: it stayed away, or refuses us.
        """
        client, stored = self._client, self.stored
        if client is None:
            return self._provider.describe()
        if stored is None or self._needs_teacher:
            live = self._patient.call(lambda: client.describe(include_tokens=True))
        else:
            try:
                live = client.describe(include_tokens=True)
            except AWAY as error:
                _log.warning("teacher_is_away", reason=str(error), remedy="the run goes on from its store")
                return stored.describe()
        if stored is not None:
            check_same_teacher(stored, live)
        return live

    def answer(self, request: LogitsRequest) -> Answer:
        """Return the answer, waiting while the teacher is away.

        Raises:
            StoreError: a store alone has no sound answer.
            GuardError, TeacherAwayError, TeacherError, Interrupted: as `PatientTeacher.answer` does.
        """
        answer = self._patient.answer(request)
        with self._counting:
            self._counts["store"] += answer.store_hits
            self._counts["teacher"] += len(answer.payloads) - answer.store_hits
        if self.on_answer is not None:
            self.on_answer(answer)
        return answer

    def counts(self) -> dict[str, int]:
        """Return how many samples were answered about so far, by the store and by the teacher at work."""
        with self._counting:
            return dict(self._counts)

    def output_head(self) -> OutputHead:
        """Return what hidden states are rebuilt with."""
        return self._patient.call(self._provider.output_head)

    def close(self) -> None:
        """Close what is open."""
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _has_everything(recipe: Recipe, stored: StoreTeacher | None) -> bool:
    """Tell whether a run from a store is sure to do without a teacher."""
    if stored is None or not recipe.reads_store or not stored.store.manifest.is_whole:
        return False
    return recipe.eval_encoding == AUTO or parse_encoding(recipe.eval_encoding) == stored.encoding


def _client(recipe: Recipe, address: str) -> TeacherClient:
    return TeacherClient(
        address,
        token=recipe.teacher_token.get_secret_value() if recipe.teacher_token else None,
        timeout_seconds=recipe.request_timeout_seconds,
        max_attempts=CLIENT_ATTEMPTS,
        credentials=credentials_for(address, recipe.teacher_ca, recipe.teacher_certificate, recipe.teacher_key),
    )


def _provider(stored: StoreTeacher | None, client: TeacherClient | None) -> TeacherLogitsProvider:
    if stored is None:
        if client is None:
            raise ConfigurationError("neither a teacher nor a store is named; give --teacher or --store")
        return client
    return stored if client is None else StoreFirst(stored, client)
