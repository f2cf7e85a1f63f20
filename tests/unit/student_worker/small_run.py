"""A run small enough for unit tests: a student of a few hundred weights, a table for a teacher, workers as threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.asking import Asking
from stillhouse.data import Order
from stillhouse.encode import encode_logits
from stillhouse.encodings import Dense
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, TeacherDescription
from student_worker.batches import Batch
from student_worker.cadence import Cadence
from student_worker.callbacks import RunView
from student_worker.callbacks.lines import Lines
from student_worker.elastic.group import Group, Membership, SoloGroup
from student_worker.elastic.reduction import GradientSum, gradient_sum, sum_scalars
from student_worker.evaluation.evaluate import Evaluator
from student_worker.optimizer import StudentOptimizer
from student_worker.parts import Outcome, Parts
from student_worker.prefetch import Key, PatientTeacher, Piece, Prefetcher
from student_worker.run_folder.journal import Journal
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective
from student_worker.state import WorkerState
from student_worker.steps import Steps
from student_worker.students.base import ModelCard, Student
from student_worker.trainer import Trainer

V, N, D = 24, 20, 8


class BagOfBigrams(Student):
    """A student whose logits depend on the token alone; its head is one entry wider than the vocabulary."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.ModuleDict({"body": nn.Embedding(V, D), "drop": nn.Dropout(dropout), "head": nn.Linear(D, V)}), 0.1
        )

    @property
    def vocabulary_size(self) -> int:
        return V

    def row_states(self, batch: Batch) -> Tensor:
        states: Tensor = self.module["drop"](self.module["body"](batch.input_ids))  # type: ignore[index]  # a ModuleDict
        return states.flatten(0, 1)[batch.rows]

    def head(self, states: Tensor) -> Tensor:
        logits: Tensor = self.module["head"](states)  # type: ignore[index]  # a ModuleDict
        return logits

    def export(self, folder: Path, card: ModelCard) -> None:
        raise AssertionError(f"not exported here: {folder}, {card}")


def teacher_logits(ids: tuple[int, ...]) -> Tensor:
    table = torch.randn(V, N, generator=torch.Generator().manual_seed(1))
    return table[list(ids)] * 2


class TableTeacher(TeacherLogitsProvider):
    """Looks its logits up by token; remembers what it was asked."""

    def __init__(self, poison: bool = False) -> None:
        self.requests: list[LogitsRequest] = []
        self._poison = poison

    def describe(self) -> TeacherDescription:
        raise AssertionError("not asked here")

    def answer(self, request: LogitsRequest) -> Answer:
        self.requests.append(request)
        payloads = []
        for sequence in request.sequences:
            rows = teacher_logits(sequence.token_ids)[list(sequence.position_indices())]
            payload = encode_logits(
                [rows],
                request.encoding,
                sequence=sequence,
                temperature=request.temperature,
                vocabulary_size=N,
            )
            payloads.append(payload)
        return Answer(tuple(payloads), "f")


Make = Callable[..., Trainer]


def make_trainer(
    dataset: Any,
    folder: Path,
    student: Student | None = None,
    teacher: TeacherLogitsProvider | None = None,
    micro_shards: int = 4,
    alpha: float = 0.3,
    temperature: float = 2.0,
    rate: float = 0.01,
    resumed: WorkerState | None = None,
    steps: Steps | None = None,
    **fields: Any,
) -> Trainer:
    """Return a trainer of five steps; `fields` are those of its `Parts`, `resumed` whose state it goes on from."""
    student = student or BagOfBigrams()
    stopping = threading.Event()
    patient = PatientTeacher(teacher or TableTeacher(), 1.0, stopping)
    known_steps = steps or Steps(dataset, Order(len(dataset), 3, dataset.fingerprint), 6, micro_shards)
    asking = Asking(Dense(), temperature, N, "f")

    def piece(key: Key) -> Piece:
        return Piece(asking.request(known_steps.shard(*key)), 0)

    optimizer = StudentOptimizer(student.module)
    state = WorkerState(student.module, optimizer, {"recipe": "r"})
    if resumed is not None:
        tensors, metadata = resumed.state()
        state.load({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(metadata)))
    parts = Parts(
        student=student,
        optimizer=optimizer,
        state=state,
        steps=known_steps,
        prefetcher=Prefetcher(patient, piece, max_bytes=10, stopping=stopping),
        evaluator=None,
        group=SoloGroup(state, step=state.step),
        tree=gradient_sum("exact", micro_shards, optimizer.num_parameters),
        objective=Objective(temperature, alpha, N),
        schedule=Schedule(rate, 0, 5, "constant"),
        cadence=Cadence(5, 1, None, 2),
        view=RunView(folder, "run", 0, 5, is_first=True),
        stopping=stopping,
    )
    parts = replace(parts, **fields)
    return Trainer(replace(parts, callbacks=[Lines(Journal(folder), parts.cadence), *parts.callbacks]))


def evaluator(dataset: Any) -> Evaluator:
    """Return what evaluates on the whole dataset."""
    return Evaluator(dataset, TableTeacher().answer, Asking(Dense(), 1.0, N, "f"), 10**6)


def weights(trainer: Trainer) -> Tensor:
    """Return all weights in one row."""
    return torch.cat([p.detach().reshape(-1) for p in trainer._parts.student.module.parameters()])


def journal(folder: Path, event: str = "step") -> list[dict[str, Any]]:
    """Return the lines of one kind."""
    return [record for record in Journal(folder).read() if record["event"] == event]


class Room:
    """Where two workers, threads of this process, add up what they have; `fails` are the votes that are lost."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self._changed = threading.Condition()
        self._arrivals, self._is_left = 0, False
        self.board: list[Tensor] = [torch.empty(0)] * 2
        self.fails = list(fails)

    def meet(self) -> None:
        """Wait for the other. A `threading.Barrier` would fail one who has met the other and not yet gone on."""
        with self._changed:
            self._arrivals += 1
            both = self._arrivals + self._arrivals % 2
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._arrivals >= both or self._is_left, timeout=20)
            if self._arrivals < both:
                raise threading.BrokenBarrierError

    def leave(self) -> None:
        """Let nobody wait for this one any more."""
        with self._changed:
            self._is_left = True
            self._changed.notify_all()


class RoomGroup(Group):
    """One of the two; the other must take every step with it, or neither goes on."""

    def __init__(self, room: Room, rank: int) -> None:
        self._room, self.rank, self.world_size, self.newcomers, self._votes = room, rank, 2, 0, 0

    def start_step(self) -> Membership:
        self._room.meet()
        return Membership(0, self.rank, 2)

    def all_reduce(self, tensor: Tensor) -> None:
        self._room.board[self.rank] = tensor.clone()
        self._room.meet()
        tensor.copy_(self._room.board[0] + self._room.board[1])
        self._room.meet()

    def all_to_all(self, *_: Any) -> None:
        raise AssertionError("two workers need none")

    def all_gather(self, *_: Any) -> None:
        raise AssertionError("two workers need none")

    def reduce(self, tree: GradientSum, scalars: Tensor) -> tuple[Tensor, Tensor]:
        return tree.total(self), sum_scalars(scalars, self, tree.device)

    def commit(self) -> bool:
        self._room.meet()
        self._votes += 1
        return self._votes not in self._room.fails

    def close(self) -> None:
        self._room.leave()


def run_together(trainers: Sequence[Trainer]) -> list[Outcome | Exception]:
    """Run one trainer in each thread; return what each came to, or the error that ended it."""
    outcomes: dict[int, Outcome | Exception] = {}

    def run(index: int) -> None:
        try:
            outcomes[index] = trainers[index].run()
        except Exception as error:  # noqa: BLE001 - handed to the test
            outcomes[index] = error
            trainers[index]._parts.group.close()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(trainers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [outcomes[index] for index in range(len(trainers))]
