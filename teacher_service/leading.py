"""Sees to it that what nobody has computed yet is computed once: here, or by the replica that was first.

A job is claimed before it is queued. Where another replica holds the claim, its value is waited for, and the job taken
over when the claim ends without one. A job whose callers have gone is dropped at every step. Knows nothing of batches,
nor of how claims are kept.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable

import structlog

from stillhouse.errors import TeacherError, TeacherInternalError, TeacherUnavailableError
from stillhouse.payload_header import Header
from teacher_service.batching import Computed, Job
from teacher_service.cache import Claim
from teacher_service.metrics import Metrics
from teacher_service.recall import Recall

_FIRST_POLL_SECONDS = 0.004
_LONGEST_POLL_SECONDS = 0.1
_POLL_GROWTH = 1.5

# A replica that renews a claim this often without a value is stuck, or so far behind that waiting gains nothing.
_MOST_LEASES_WAITED = 12

logger = structlog.get_logger(__name__)


class Leader:
    """Leads jobs to their results; for one event loop."""

    def __init__(self, recall: Recall, metrics: Metrics, submit: Callable[[Iterable[Job]], None]) -> None:
        self._recall = recall
        self._count = metrics.leases.labels
        self._submit = submit
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, jobs: dict[Job, Header]) -> None:
        """Take on jobs with keys, given the headers of their payloads; each gets its result or is cancelled."""
        if not jobs:
            return
        task = asyncio.create_task(self._lead_safely(jobs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is still being led."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _lead_safely(self, jobs: dict[Job, Header]) -> None:
        error: TeacherError = TeacherUnavailableError("the teacher was stopped before it could answer")
        is_led = False
        try:
            await self._lead(jobs)
            is_led = True
        except TeacherError as refusal:
            error = refusal
        except Exception:  # whatever it is, those who wait must hear of it
            logger.exception("leading_failed")
            error = TeacherInternalError("an internal fault of the teacher service; its log says more")
        finally:
            if not is_led:
                for job in jobs:
                    if not job.result.done():
                        job.result.set_exception(error)

    async def _lead(self, jobs: dict[Job, Header]) -> None:
        """Claim, then compute or wait, until none is left."""
        started, poll_seconds, is_first = time.monotonic(), _FIRST_POLL_SECONDS, True
        waiting = {job.key: job for job in jobs if job.key is not None}
        longest = _MOST_LEASES_WAITED * self._recall.lease_seconds
        while waiting := {key: job for key, job in waiting.items() if not job.result.done()}:
            claims = await self._recall.claim({key: jobs[job] for key, job in waiting.items()})
            if claims is None or time.monotonic() - started > longest > 0:
                self._count("error" if claims is None else "late").inc(len(waiting))
                claims = {key: Claim(None, may_compute=True) for key in waiting}
            self._submit(self._take_on(waiting, claims, is_first=is_first))
            if not waiting:
                return
            is_first = False
            await asyncio.sleep(poll_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
            poll_seconds = min(_POLL_GROWTH * poll_seconds, _LONGEST_POLL_SECONDS)

    def _take_on(self, waiting: dict[bytes, Job], claims: dict[bytes, Claim], *, is_first: bool) -> list[Job]:
        """Land the jobs whose values are there, and return those to compute here; neither waits any more."""
        to_compute = []
        for key, claim in claims.items():
            job = waiting[key]
            if claim.value is None and not claim.may_compute:
                continue
            del waiting[key]
            if job.result.done():
                # Its callers left while it was being claimed.
                self._recall.give_up([key])
            elif claim.value is not None:
                self._recall.give_up([key])
                self._count("found" if is_first else "waited").inc()
                job.result.set_result(Computed(claim.value, from_cache=True))
            else:
                self._count("claimed" if is_first else "taken_over").inc()
                job.result.add_done_callback(lambda _, key=key: self._recall.give_up([key]))  # type: ignore[misc]  # mypy cannot type it
                to_compute.append(job)
        return to_compute
