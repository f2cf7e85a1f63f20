"""metrics.jsonl and samples.jsonl: each line once, whoever wrote first, died, froze or did steps again."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student_worker.cadence import Cadence
from student_worker.elastic.group import SoloGroup
from student_worker.locks import locked
from student_worker.run_folder import journal as journals
from student_worker.run_folder.journal import SAMPLES_FILE, Journal
from tests.unit.student_worker.small_run import Make, Room, RoomGroup, run_together


def do(step: int, *workers: Journal, writer: Journal | None) -> None:
    """Do a step: every worker remembers its line, the writer writes."""
    for index, worker in enumerate(workers):
        worker.add(event="step", step=step, worker=index)
        worker.flush(step=step, writes=worker is writer)


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in Journal(folder).read()]


def test_a_line_that_the_first_worker_was_killed_before_writing_is_written_by_its_successor(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    for step in (1, 2):
        do(step, first, second, writer=first)
    do(3, second, writer=None)
    do(4, second, writer=second)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_newcomer_that_becomes_first_knows_the_lines_of_the_peer_that_it_healed_from(tmp_path: Path) -> None:
    first, second, newcomer = Journal(tmp_path), Journal(tmp_path), Journal(tmp_path)
    do(1, first, second, writer=first)
    do(2, second, writer=None)
    newcomer.add(event="evaluation", step=0, kl=1.0)
    newcomer.flush(step=0, writes=False)
    newcomer.restore(json.loads(json.dumps(second.progress())))
    do(3, second, newcomer, writer=newcomer)
    assert steps(tmp_path) == [1, 2, 3]


def test_steps_that_are_done_again_replace_the_earlier_lines(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for step in range(1, 8):
        do(step, first, writer=first)
    second = Journal(tmp_path)
    second.add(event="step", step=5, again=True)
    second.flush(step=5, writes=True)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert Journal(tmp_path).read()[-1] == {"event": "step", "step": 5, "again": True}


def test_a_writer_that_was_taken_for_dead_neither_doubles_nor_drops_a_line(tmp_path: Path) -> None:
    frozen, other = Journal(tmp_path), Journal(tmp_path)
    do(1, frozen, other, writer=frozen)
    other.add(event="step", step=2)
    other.flush(step=2, writes=True)
    do(3, other, writer=other)
    frozen.add(event="step", step=2)
    frozen.flush(step=2, writes=True)
    assert steps(tmp_path) == [1, 2, 3]


def test_of_two_groups_the_one_behind_writes_its_lines_where_they_belong(tmp_path: Path) -> None:
    ahead, behind = Journal(tmp_path), Journal(tmp_path)
    for step in (1, 2, 3):
        do(step, ahead, writer=ahead)
    for step in (1, 2):
        do(step, behind, writer=None)
    do(3, behind, writer=behind)
    for step in (4, 5, 6):
        do(step, ahead, writer=ahead)
    for step in (4, 5, 6):
        do(step, behind, writer=behind)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_two_groups_that_lost_each_other_and_write_at_once_neither_double_nor_drop_a_line(tmp_path: Path) -> None:
    start = threading.Barrier(2)

    def write(_: int) -> None:
        journal = Journal(tmp_path)
        start.wait()
        for step in range(1, 200):
            do(step, journal, writer=journal)

    with ThreadPoolExecutor(2) as groups:
        list(groups.map(write, range(2)))
    assert steps(tmp_path) == list(range(1, 200))


def test_a_writer_that_was_frozen_with_the_lock_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "LOCK_SECONDS", 0.05)
    journal = Journal(tmp_path)
    with locked(journal.path, 0):
        do(1, journal, writer=journal)
    assert steps(tmp_path) == [1]


def test_lines_wait_for_a_writer_and_evaluations_stand_after_their_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(event="evaluation", step=0, kl=1.0)
    journal.flush(step=0, writes=False)
    assert not journal.path.exists()
    journal.add(event="step", step=1)
    journal.add(event="evaluation", step=1, kl=2.0)
    journal.flush(step=1, writes=True, sync=True)
    assert [(line["step"], line["event"]) for line in journal.read()] == [
        (0, "evaluation"),
        (1, "step"),
        (1, "evaluation"),
    ]


def test_a_line_that_a_kill_cut_short_is_written_anew(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    do(1, first, second, writer=first)
    with first.path.open("a") as file:
        file.write('{"event": "step", "st')
    do(2, second, writer=None)
    do(3, second, writer=second)
    assert [json.loads(line)["step"] for line in second.path.read_text().splitlines()] == [1, 2, 3]


def test_only_the_end_of_a_long_file_is_read_and_its_beginning_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "READ_BYTES", 64)
    first = Journal(tmp_path)
    for step in range(1, 300):
        do(step, first, writer=first)
    before = first.path.read_bytes()
    second = Journal(tmp_path)
    second.add(event="step", step=290, again=True)
    second.flush(step=290, writes=True)
    assert steps(tmp_path) == list(range(1, 291))
    assert before.startswith(second.path.read_bytes()[:-60])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whoever_dies_when_every_committed_step_has_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three workers; at each step the first may die after it has committed, and before or after it wrote."""
    folder = tmp_path_factory.mktemp("run")
    workers = [Journal(folder) for _ in range(3)]
    for step in range(1, 40):
        dies = data.draw(st.sampled_from(["nobody", "nobody", "before", "after"]), label=f"step {step}")
        for index, worker in enumerate(workers):
            worker.add(event="step", step=step)
            if not (dies == "before" and index == 0):
                worker.flush(step=step, writes=index == 0)
        if dies != "nobody":
            newcomer = Journal(folder)
            newcomer.restore(workers[1].progress())
            place = data.draw(st.integers(0, 2), label="its rank")
            workers = workers[1:]
            workers.insert(place, newcomer)
    for worker in workers[:1]:
        worker.add(event="step", step=40)
        worker.flush(step=40, writes=True)
    assert steps(folder) == list(range(1, 41))


def test_the_log_of_samples_names_each_once_and_who_computed_it(make: Make, tmp_path: Path) -> None:
    room = Room(fails=[2])
    trainers = [
        make(group=RoomGroup(room, rank), sample_log=Journal(tmp_path, SAMPLES_FILE), cadence=Cadence(5, 3, None, 2))
        for rank in range(2)
    ]
    run_together(trainers)
    lines = Journal(tmp_path, SAMPLES_FILE).read()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    known = trainers[0]._parts.steps
    for line in lines:
        assert line["world_size"] == 2
        assert [(part["shard"], part["rank"]) for part in line["shards"]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
        assert [i for part in line["shards"] for i in part["sample_ids"]] == known.sample_ids(line["step"] - 1)
    alone = make(sample_log=Journal(tmp_path, SAMPLES_FILE))
    assert isinstance(alone._parts.group, SoloGroup)
    alone.run()
    again = Journal(tmp_path, SAMPLES_FILE).read()
    assert [line["step"] for line in again] == [1, 2, 3, 4, 5]
    assert {part["rank"] for line in again for part in line["shards"]} == {0}
