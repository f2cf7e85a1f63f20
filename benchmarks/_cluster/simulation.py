"""Simulates a cluster, event by event, and says what came of it: the same for the same seed.

Knows nothing of what the figures of a scenario mean.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from random import Random
from unittest.mock import patch

import simpy

from benchmarks._cluster.bounds import RESOURCES
from benchmarks._cluster.callers import Client, Gang, Student, keep_asking
from benchmarks._cluster.clock import Line
from benchmarks._cluster.parts import Cluster
from benchmarks._cluster.teacher import SharedRedis, Teacher
from stillhouse.patience import CLIENT_ATTEMPTS


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the measured time, in which nothing begins or ends: rates and means.

    `utilisation` is by the names of `RESOURCES`, of the mean teacher and the mean student. Of the whole run, for its
    books: questions asked, answered and still open; calls made, and how many of them were refused.
    """

    seconds: float
    steps: int
    questions_s: float
    tokens_s: float
    utilisation: dict[str, float]
    waiting: float
    """The part of its time that the mean student waits for the teachers."""
    in_service: float
    """The mean number of calls inside the teachers."""
    service_seconds: float
    """The mean time that a call is inside a teacher."""
    calls_s: float
    computed: int
    """Sequences that went through the models, in the measured time."""
    late: int
    """Exchanges with Redis that it did not answer in the time that a teacher gives it."""
    asked: int
    answered: int
    unanswered: int
    calls: int
    refused: int


def simulate_training(cluster: Cluster, *, steps: int, warm_up: int, seed: int = 0) -> Outcome:
    """Let the cluster train for `warm_up` steps that do not count and `steps` that do."""
    world = _World(cluster, seed)
    # More steps follow, so that answers are fetched ahead in the last ones that count as in all others.
    gang = Gang(world.env, cluster, warm_up + steps + cluster.student.prefetch_steps)
    clients = [world.client() for _ in range(cluster.students)]
    students = [Student(gang, rank, client) for rank, client in enumerate(clients)]
    with patch("teacher_service.capacity.random", world.random):
        while len(gang.ended_at) < warm_up:
            world.env.step()
        before = _Count(world, clients, students)
        while len(gang.ended_at) < warm_up + steps:
            world.env.step()
        after = _Count(world, clients, students)
    return _outcome(world, clients, before, after, steps)


def simulate_callers(
    cluster: Cluster,
    callers: int,
    *,
    seconds: float,
    warm_up: float,
    seed: int = 0,
    max_attempts: int = CLIENT_ATTEMPTS,
) -> Outcome:
    """Let so many callers, who do nothing else, ask one micro-shard's question after the other.

    One of them asks once before, since a teacher that has computed nothing yet names other pauses.
    """
    world = _World(cluster, seed)
    clients = [world.client(max_attempts) for _ in range(callers)]
    with patch("teacher_service.capacity.random", world.random):
        world.env.run(until=world.env.process(clients[0].answer()))
        start = world.env.now + warm_up
        for client in clients:
            world.env.process(keep_asking(client))
        world.env.run(until=start)
        before = _Count(world, clients, [])
        world.env.run(until=start + seconds)
        after = _Count(world, clients, [])
    return _outcome(world, clients, before, after, 0)


class _World:
    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.env, self.cluster = simpy.Environment(), cluster
        # The service spreads its pauses by draws of its own: all draws of a simulation are from this one.
        self.random = Random(seed)  # noqa: S311 - a simulation, nothing to guard
        self.redis: SharedRedis | None = None
        if cluster.redis is not None and cluster.is_remembered:
            process, sending, receiving = (Line(self.env) for _ in range(3))
            self.redis = SharedRedis(cluster.redis, process, sending, receiving, cluster.redis_bytes_s)
        self.teachers = [Teacher(self.env, cluster, self.redis, self.random) for _ in range(cluster.teachers)]

    def client(self, max_attempts: int = CLIENT_ATTEMPTS) -> Client:
        return Client(self.env, self.cluster, self.teachers, self.random, max_attempts)


class _Count:
    """Where all counters stand at one moment."""

    def __init__(self, world: _World, clients: SequenceOf[Client], students: SequenceOf[Student]) -> None:
        teachers, redis = world.teachers, world.redis
        self.now = world.env.now
        self.answered = sum(client.asked.left for client in clients)
        self.computed = sum(teacher.computed for teacher in teachers)
        self.left = sum(teacher.crowd.left for teacher in teachers)
        self.area = sum(teacher.crowd.area for teacher in teachers)
        self.stayed = sum(teacher.crowd.stayed_seconds for teacher in teachers)
        self.waited = _mean([student.waited_seconds for student in students])
        busy = (
            _mean([teacher.model.busy_seconds for teacher in teachers]),
            _mean([teacher.process.busy_seconds for teacher in teachers]),
            _mean([teacher.sending.busy_seconds for teacher in teachers]),
            redis.process.busy_seconds if redis else 0.0,
            max(redis.sending.busy_seconds, redis.receiving.busy_seconds) if redis else 0.0,
            _mean([student.computed_seconds for student in students]),
            _mean([client.receiving.busy_seconds for client in clients]),
        )
        self.busy = dict(zip(RESOURCES, busy, strict=True))


def _mean(values: SequenceOf[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _outcome(world: _World, clients: SequenceOf[Client], before: _Count, after: _Count, steps: int) -> Outcome:
    seconds = after.now - before.now
    # Not steps: what was fetched ahead before the window may still be trained on in it.
    questions, calls = after.answered - before.answered, after.left - before.left
    return Outcome(
        seconds=seconds,
        steps=steps,
        questions_s=questions / seconds,
        tokens_s=questions * world.cluster.shard_tokens / seconds,
        utilisation={name: (after.busy[name] - before.busy[name]) / seconds for name in RESOURCES},
        waiting=(after.waited - before.waited) / seconds,
        in_service=(after.area - before.area) / seconds,
        service_seconds=(after.stayed - before.stayed) / max(calls, 1),
        calls_s=calls / seconds,
        computed=after.computed - before.computed,
        late=sum(teacher.late for teacher in world.teachers),
        asked=sum(client.asked.came for client in clients),
        answered=sum(client.asked.left for client in clients),
        unanswered=sum(client.asked.present for client in clients),
        calls=sum(client.attempts for client in clients),
        refused=sum(client.refused for client in clients),
    )
