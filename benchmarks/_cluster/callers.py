"""Who asks the simulated teachers: the client with its balancing and retries, callers, and students that train.

The waits between attempts are those of `stillhouse.retries` and, once the client gives up, of `stillhouse.patience`.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from random import Random

import simpy

from benchmarks._cluster.bounds import sum_bytes
from benchmarks._cluster.clock import Crowd, Events, Line, Meeting
from benchmarks._cluster.parts import Cluster
from benchmarks._cluster.teacher import Teacher
from stillhouse import patience, retries
from stillhouse.errors import OverloadedError
from student_worker.elastic.reduction import shard_range


@dataclass
class Client:
    """A `TeacherClient`: its calls go round the teachers, from one drawn at random, and those refused come again."""

    env: simpy.Environment
    cluster: Cluster
    teachers: SequenceOf[Teacher]
    random: Random
    max_attempts: int
    receiving: Line = field(init=False)

    def __post_init__(self) -> None:
        self.receiving = Line(self.env)
        self.asked = Crowd(self.env)
        self.attempts = 0
        self.refused = 0
        self._turn = self.random.randrange(len(self.teachers))

    def answer(self) -> Events:
        """Ask about one micro-shard, in the parts that the client makes of it, until all are answered."""
        entered, left, rounds = self.asked.enter(), self.cluster.shard_sequences, 0
        while left:
            part = min(left, self.cluster.part_sequences)
            pause = yield from self._call(part)
            if pause is None:
                left -= part
                continue
            # The client has given up; whoever waits patiently asks it for all of them again.
            rounds += 1
            left = self.cluster.shard_sequences
            longest = min(patience.LONGEST_WAIT_SECONDS, patience.FIRST_WAIT_SECONDS * 2 ** (rounds - 1))
            yield self.env.timeout(pause + self.random.uniform(0, longest))
        self.asked.leave(entered)

    def _call(self, sequences: int) -> Events:
        """Call until answered: None; or as often as the client tries: the last pause that it was told."""
        for attempt in range(self.max_attempts):
            self.attempts += 1
            self._turn = (self._turn + 1) % len(self.teachers)
            try:
                yield from self.teachers[self._turn].answer(sequences, self.receiving)
            except OverloadedError as error:
                self.refused += 1
                if attempt + 1 == self.max_attempts:
                    return error.retry_after_seconds
                longest = min(retries.LONGEST_WAIT_SECONDS, retries.FIRST_WAIT_SECONDS * 2**attempt)
                yield self.env.timeout(error.retry_after_seconds + self.random.uniform(0, longest))
            else:
                return None
        return None


def keep_asking(client: Client) -> Events:
    """Ask, and ask again once answered: a caller with nothing else to do."""
    while True:
        yield from client.answer()


@dataclass
class Gang:
    """What the students of a run share: the steps that are done, and where they wait for each other."""

    env: simpy.Environment
    cluster: Cluster
    num_steps: int

    def __post_init__(self) -> None:
        self.quorum, self.sum, self.vote = (Meeting(self.env, self.cluster.students) for _ in range(3))
        self.sum_seconds = sum_bytes(self.cluster) / self.cluster.student_bytes_s
        self.ended_at: list[float] = []


class Student:
    """One student worker: fetches ahead, and takes part in every step."""

    def __init__(self, gang: Gang, rank: int, client: Client) -> None:
        self._env, self._cluster, self._gang, self._client = gang.env, gang.cluster, gang, client
        self._rank = rank
        self._shards = len(shard_range(rank, gang.cluster.students, gang.cluster.micro_shards))
        self._missing = [self._shards] * gang.num_steps
        self._arrived = [self._env.event() for _ in range(gang.num_steps)]
        self._next = 0
        self._held = 0
        self._step = 0
        self._moved = self._env.event()
        self.waited_seconds = 0.0
        self.computed_seconds = 0.0
        for _ in range(gang.cluster.student.requests_in_flight if self._shards else 0):
            self._env.process(self._fetch())
        self._env.process(self._train())

    def _fetch(self) -> Events:
        """One thread of the prefetcher: the next micro-shard in order, as soon as it may be held."""
        about = self._cluster.student
        shard_bytes = self._cluster.shard_tokens * self._cluster.form.most_bytes
        while self._next < self._shards * self._gang.num_steps:
            step = self._next // self._shards
            has_room = (self._held + 1) * shard_bytes <= about.prefetch_bytes
            if step > self._step and (step > self._step + about.prefetch_steps or not has_room):
                yield self._moved
                continue
            self._next += 1
            self._held += 1
            yield from self._client.answer()
            self._missing[step] -= 1
            if not self._missing[step]:
                self._arrived[step].succeed()

    def _train(self) -> Events:
        cluster, gang = self._cluster, self._gang
        shard_seconds = cluster.shard_tokens * (cluster.student.token_seconds + cluster.form.decode_seconds)
        for step in range(gang.num_steps):
            began = self._env.now
            if self._shards:
                yield self._arrived[step]
            self.waited_seconds += self._env.now - began
            yield gang.quorum.join()
            seconds = self._shards * shard_seconds + cluster.student.step_seconds
            self.computed_seconds += seconds
            yield self._env.timeout(seconds)
            yield gang.sum.join()
            yield self._env.timeout(self._client.receiving.ends_after(gang.sum_seconds))
            yield gang.vote.join()
            if self._rank == 0:
                gang.ended_at.append(self._env.now)
                if cluster.save_steps and (step + 1) % cluster.save_steps == 0:
                    yield self._env.timeout(cluster.save_seconds)
            self._step, self._held = step + 1, self._held - self._shards
            self._moved.succeed()
            self._moved = self._env.event()
