"""A simulated teacher: what it takes on, how it batches, what it remembers, as `teacher_service` does.

Its bounds, the pause that it names to whoever it refuses, the choice of a batch and the breaker before Redis are not
copies of the service's but the service's own (`Capacity`, `choose_batch`, `CircuitBreaker`); only what happens in
between, and how long it takes, is made up.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from random import Random

import simpy

from benchmarks._cluster.clock import Crowd, Events, Line
from benchmarks._cluster.parts import Cluster, Redis
from teacher_service.batch_choice import LOOK_AHEAD, choose_batch
from teacher_service.capacity import Capacity
from teacher_service.circuit_breaker import CircuitBreaker
from teacher_service.metrics import Metrics

CROWD_DECAY = 0.8
"""As in `teacher_service.batching`: how fast a batcher forgets how many asked at once."""

SLOWEST_BYTES_S = 200e6
REDIS_CONNECTIONS = 16
"""As in `teacher_service.redis_link`: what Redis is given for the bytes of its answer, beside its timeout; and how
many exchanges of one teacher are under way."""


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to compute."""

    tokens: int
    done: simpy.Event
    enqueued_at: float


@dataclass
class SharedRedis:
    """The Redis of all teachers: its thread, and its network each way."""

    about: Redis
    process: Line
    sending: Line
    receiving: Line
    bytes_s: float

    def moves(self, sequences: int, num_bytes: float, network: Line) -> float:
        """Take on values to read or to write; return in how many seconds it is done."""
        work = sequences * self.about.value_seconds + num_bytes / self.about.bytes_s
        return max(self.process.ends_after(work), network.ends_after(num_bytes / self.bytes_s))


@dataclass
class Teacher:
    """One teacher of a cluster; `answer` is a call of it."""

    env: simpy.Environment
    cluster: Cluster
    redis: SharedRedis | None
    random: Random
    model: Line = field(init=False)
    process: Line = field(init=False)
    sending: Line = field(init=False)
    crowd: Crowd = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.process, self.sending = (Line(self.env) for _ in range(3))
        self.crowd = Crowd(self.env)
        self.computed = 0
        self.late = 0
        service = self.cluster.service
        self._capacity = Capacity(
            Metrics(),
            max_requests=service.max_requests,
            max_queue_sequences=service.max_queue_sequences,
            max_queue_tokens=service.max_queue_tokens,
            max_held_bytes=service.max_held_bytes,
        )
        self._breaker = CircuitBreaker(lambda: float(self.env.now))
        self._connections = simpy.Resource(self.env, REDIS_CONNECTIONS)
        self._waiting: list[Job] = []
        self._lately = 0.0
        self._wake = self.env.event()
        self.env.process(self._run())

    def answer(self, sequences: int, receiving: Line) -> Events:
        """Answer a call about so many sequences, over the caller's network.

        Raises:
            OverloadedError: the service's own, with the pause that it names.
        """
        cluster, service = self.cluster, self.cluster.service
        tokens, num_bytes = [cluster.sequence_tokens] * sequences, sequences * cluster.sequence_bytes
        most_bytes = int(sequences * cluster.sequence_tokens * cluster.form.most_bytes)
        yield self.env.timeout(self.process.ends_after(service.request_seconds) + service.request_delay_seconds)
        with self._capacity.admitting(tokens, answer_bytes=most_bytes) as place:
            entered = self.crowd.enter()
            yield self.env.timeout(self.process.ends_after(sequences * service.sequence_seconds))
            missing = yield from self._look_up(sequences)
            place.leave_all_but(tokens[:missing])
            yield self.env.all_of([job.done for job in self._submit(missing)])
            yield self.env.timeout(self.process.ends_after(num_bytes / service.process_bytes_s))
            # Chunk by chunk: the caller's network takes what the teacher's gives at the same time.
            sent = self.sending.ends_after(num_bytes / cluster.teacher_bytes_s)
            yield self.env.timeout(max(sent, receiving.ends_after(num_bytes / cluster.student_bytes_s)))
            self.crowd.leave(entered)

    def _look_up(self, sequences: int) -> Events:
        """Return how many sequences are to be computed."""
        hits = sum(self.random.random() < self.cluster.hits for _ in range(sequences))
        if self.redis is None or not hits:
            return sequences
        is_answered = yield from self._exchange(self.redis, hits, self.redis.sending)
        return sequences - hits if is_answered else sequences

    def _exchange(self, redis: SharedRedis, values: int, network: Line) -> Events:
        """Read or write values as `RedisLink` does; return whether Redis was asked and answered in time."""
        is_try = self._breaker.is_open
        if not self._breaker.allows_call():
            return False
        with self._connections.request() as turn:
            yield turn
            if self._breaker.is_open and not is_try:
                return False
            took = redis.moves(values, values * self.cluster.sequence_bytes, network)
            most_bytes = values * self.cluster.sequence_tokens * self.cluster.form.most_bytes
            bound = redis.about.timeout_seconds + most_bytes / SLOWEST_BYTES_S
            yield self.env.timeout(min(took, bound))
        if took > bound:
            self._breaker.failed()
            self.late += 1
        else:
            self._breaker.succeeded()
        return took <= bound

    def _submit(self, count: int) -> list[Job]:
        jobs = [Job(self.cluster.sequence_tokens, self.env.event(), self.env.now) for _ in range(count)]
        self._waiting += jobs
        if jobs and not self._wake.triggered:
            self._wake.succeed()
        return jobs

    def _run(self) -> Events:
        """Compute batch after batch; one at most is being remembered meanwhile."""
        finishing: simpy.Process | None = None
        while True:
            batch = yield from self._next_batch()
            tokens, service = sum(job.tokens for job in batch), self.cluster.service
            seconds = service.batch_seconds + tokens * (service.token_seconds + self.cluster.form.encode_seconds)
            yield self.env.timeout(self.model.ends_after(seconds))
            self._lately = max(len(batch) + len(self._waiting), CROWD_DECAY * self._lately)
            self._capacity.measure(tokens, seconds)
            self.computed += len(batch)
            if finishing is not None:
                yield finishing
            finishing = self.env.process(self._finish(batch))

    def _next_batch(self) -> Events:
        """Wait as `Batcher` does: until a batch is full, as many are there as lately were, or patience is over."""
        service, idle_since = self.cluster.service, self.env.now
        while True:
            self._wake = self.env.event()
            lengths = [job.tokens for job in self._waiting[:LOOK_AHEAD]]
            chosen, is_full = choose_batch(lengths, service.max_batch_tokens)
            waits = [self._wake]
            if chosen:
                since = max(self._waiting[0].enqueued_at, idle_since)
                patience = since + service.max_queue_delay_seconds - self.env.now
                # Below a nanosecond the clock may not move at all.
                if is_full or patience <= 1e-9 or len(self._waiting) >= self._lately:
                    taken = set(chosen)
                    batch = [self._waiting[index] for index in chosen]
                    self._waiting = [job for index, job in enumerate(self._waiting) if index not in taken]
                    return batch
                waits.append(self.env.timeout(patience))
            yield self.env.any_of(waits)

    def _finish(self, batch: SequenceOf[Job]) -> Events:
        if self.redis is not None:
            yield from self._exchange(self.redis, len(batch), self.redis.receiving)
        for job in batch:
            self._capacity.change_queue(-1, -job.tokens)
            job.done.succeed()
