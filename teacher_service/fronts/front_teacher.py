"""How a front answers: out of the cache by itself, and by the engine what is not there.

The same checks, keys, bounds and notes as the teacher's, without the model. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from stillhouse.request import LogitsRequest, TeacherDescription
from teacher_service.answering import CheckedRequest, EncodedAnswer, check_request
from teacher_service.capacity import Capacity, Place
from teacher_service.fronts.engine import Engine
from teacher_service.metrics import Metrics
from teacher_service.recall import Recall, keys_of, look_up
from teacher_service.request_notes import current_note, note_answer, note_request
from teacher_service.settings import TeacherSettings


class FrontTeacher:
    """Answers requests for one front; for one event loop."""

    def __init__(
        self,
        description: TeacherDescription,
        engine: Engine,
        recall: Recall | None,
        metrics: Metrics,
        settings: TeacherSettings,
    ) -> None:
        self.description = description
        self._engine = engine
        self._recall = recall
        self._metrics = metrics
        self._max_answer_bytes = settings.max_answer_bytes
        self._capacity = Capacity.of(settings, metrics, max_held_bytes=settings.front_held_bytes)

    def check(self, request: LogitsRequest) -> CheckedRequest:
        """Check a request.

        Raises:
            TeacherError: what it would be answered.
        """
        return check_request(request, self.description, self._max_answer_bytes)

    @asynccontextmanager
    async def answering(self, asked: CheckedRequest) -> AsyncIterator[EncodedAnswer]:
        """Answer what `check` has let pass; send the answer inside.

        Raises:
            TeacherError: as the teacher's own.
        """
        note_request(asked.request)
        token_counts = [len(sequence.token_ids) for sequence in asked.request.sequences]
        with self._capacity.admitting(token_counts, answer_bytes=asked.most_bytes) as place:
            async with AsyncExitStack() as shared:
                answer = await self._answer(asked, place, shared)
                note_answer(
                    cache_hits=answer.cache_hits,
                    queue_seconds=answer.queue_seconds,
                    compute_seconds=answer.compute_seconds,
                    encode_seconds=answer.encode_seconds,
                )
                yield answer

    async def _answer(self, asked: CheckedRequest, place: Place, shared: AsyncExitStack) -> EncodedAnswer:
        request, keys = asked.request, keys_of(asked.request, self.description)
        expected = dict(zip(keys, asked.headers, strict=True))
        found = await look_up(self._recall, self._metrics, request.cache_mode, expected)
        # What is left waits in the engine's queue, and no more in this one's.
        place.leave_all()
        payloads = {key: one.payload for key, one in found.items()}
        hits = sum(key in found for key in keys)
        missing = {key: index for index, key in enumerate(keys) if key not in payloads}
        if not missing:
            return EncodedAnswer(tuple(payloads[key] for key in keys), self.description.fingerprint, hits)
        rest = replace(request, sequences=tuple(request.sequences[index] for index in missing.values()))
        note = current_note()
        computed = await shared.enter_async_context(
            self._engine.asking(rest, caller=note.caller, request_id=note.request_id)
        )
        payloads |= zip(missing, computed.payloads, strict=True)
        return replace(computed, payloads=tuple(payloads[key] for key in keys), cache_hits=hits + computed.cache_hits)
