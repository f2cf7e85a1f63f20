"""Requests in flight, bounded in number and bytes; answers are handed out as they come, in any order.

Knows nothing of stores, nor of waiting for a teacher that is away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from stillhouse.asking import Asking
from stillhouse.data import PackedDataset, Sample
from stillhouse.data.dataset import PartName
from stillhouse.payload_header import expected_headers
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest, TeacherDescription

POLL_SECONDS = 0.1
"""How soon a wait for answers notices that the capture is to stop."""


@dataclass(frozen=True, slots=True)
class Question:
    """Some samples of a part, and the request about them; its answer has at most `num_bytes`."""

    part: PartName
    indices: tuple[int, ...]
    samples: tuple[Sample, ...]
    request: LogitsRequest
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens of its samples."""
        return self.request.num_tokens


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is asked in one request, how many requests are in flight, and how much they may hold together."""

    max_request_tokens: int
    max_requests: int
    max_bytes: int


def questions(
    dataset: PackedDataset, indices: Iterable[int], asking: Asking, teacher: TeacherDescription, bounds: Bounds
) -> Iterator[Question]:
    """Yield the requests about samples, in order, made as they are taken: each of as many samples as its bounds let.

    One request takes at most its share of the bytes, so that several fit; a sample over a bound goes alone.
    """
    most_bytes = bounds.max_bytes // bounds.max_requests
    group: list[tuple[int, Sample]] = []
    tokens = num_bytes = 0
    for index in indices:
        sample = dataset[index]
        size = _most_bytes(asking.request([sample]), teacher)
        if group and (tokens + len(sample.token_ids) > bounds.max_request_tokens or num_bytes + size > most_bytes):
            yield _question(dataset.name, group, asking, num_bytes)
            group, tokens, num_bytes = [], 0, 0
        group.append((index, sample))
        tokens += len(sample.token_ids)
        num_bytes += size
    if group:
        yield _question(dataset.name, group, asking, num_bytes)


def answers(
    asked: Iterator[Question],
    ask: Callable[[LogitsRequest], Answer],
    bounds: Bounds,
    look: Callable[[], None],
) -> Iterator[tuple[Question, Answer]]:
    """Yield each question with its answer, as answers come.

    What has come is handed out before an error is raised, so that nothing that was answered is lost.

    Args:
        asked: the questions, taken when there is room for their answers.
        ask: asks the teacher; called from several threads.
        bounds: how much may be in flight.
        look: called now and then while answers are waited for; what it raises ends the wait.
    """
    pool = ThreadPoolExecutor(bounds.max_requests, thread_name_prefix="capture")
    flying: dict[Future[Answer], Question] = {}
    held = 0
    waiting = next(asked, None)
    try:
        while waiting is not None or flying:
            while waiting is not None and _has_room(len(flying), held + waiting.num_bytes, bounds):
                flying[pool.submit(ask, waiting.request)] = waiting
                held += waiting.num_bytes
                waiting = next(asked, None)
            wait(flying, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            look()
            for future in sorted((one for one in flying if one.done()), key=_failed):
                question = flying.pop(future)
                yield question, future.result()
                held -= question.num_bytes
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _has_room(in_flight: int, num_bytes: int, bounds: Bounds) -> bool:
    return in_flight < bounds.max_requests and (in_flight == 0 or num_bytes <= bounds.max_bytes)


def _failed(future: Future[Answer]) -> bool:
    return future.exception() is not None


def _question(part: PartName, group: list[tuple[int, Sample]], asking: Asking, num_bytes: int) -> Question:
    indices, samples = zip(*group, strict=True)
    return Question(part, indices, samples, asking.request(samples), num_bytes)


def _most_bytes(request: LogitsRequest, teacher: TeacherDescription) -> int:
    return sum(header.size_bounds()[1] for header in expected_headers(request, teacher))
