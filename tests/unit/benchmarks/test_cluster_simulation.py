"""The simulated cluster keeps its books: what is asked is answered or refused, and the laws of queues hold in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._cluster import teacher
from benchmarks._cluster.bounds import RESOURCES, chain_seconds, demands, least_step_seconds
from benchmarks._cluster.clock import Crowd, Line, Meeting
from benchmarks._cluster.parts import Cluster, Form, Redis, Service, Worker
from benchmarks._cluster.scenarios import CODINGS, Coding, changes, cluster
from benchmarks._cluster.simulation import Outcome, simulate_callers, simulate_training
from benchmarks.cluster import first_limit
from teacher_service import batching, redis_link

FORM = Form("top_k:64", 400.0, 400.0)
SERVICE = Service(
    token_seconds=1e-5, batch_seconds=1e-3, request_seconds=1e-4, sequence_seconds=1e-5, process_bytes_s=1e9
)
SMALL = Cluster(
    form=FORM,
    service=SERVICE,
    student=Worker(parameters=1e6, token_seconds=1e-6, step_seconds=1e-3),
    teachers=2,
    students=4,
    micro_shards=8,
    sequence_tokens=256,
    teacher_bytes_s=1e9,
    student_bytes_s=1e9,
    redis_bytes_s=1e9,
)
REMEMBERED = replace(SMALL, redis=Redis(value_seconds=1e-5, bytes_s=1e9, timeout_seconds=10.0), cache_ratio=1.0)


def train(one: Cluster, steps: int = 6, warm_up: int = 3, seed: int = 0) -> Outcome:
    return simulate_training(one, steps=steps, warm_up=warm_up, seed=seed)


@pytest.mark.parametrize("one", [SMALL, REMEMBERED, replace(REMEMBERED, cache_ratio=0.5)])
def test_the_same_seed_gives_the_same_outcome(one: Cluster) -> None:
    assert train(one, seed=3) == train(one, seed=3)


def test_another_seed_gives_another_order_of_refusals() -> None:
    tight = replace(SMALL, service=replace(SERVICE, max_queue_sequences=4))
    first, second = (simulate_callers(tight, 8, seconds=5, warm_up=1, seed=seed) for seed in (0, 1))
    assert first.refused > 0
    assert first != second


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(2, 40),
    st.integers(0, 5),
)
def test_every_call_is_answered_or_refused_once_and_every_question_answered(
    teachers: int, callers: int, ratio: float, queue: int, seed: int
) -> None:
    one = replace(
        REMEMBERED,
        teachers=teachers,
        cache_ratio=ratio,
        service=replace(SERVICE, max_queue_sequences=queue),
    )
    outcome = simulate_callers(one, callers, seconds=2, warm_up=0.1, seed=seed)
    assert outcome.asked == outcome.answered + outcome.unanswered
    assert 0 <= outcome.unanswered <= callers
    # A question is one call here, which is made again after each refusal; one may be under way for each caller.
    assert outcome.answered + outcome.refused <= outcome.calls <= outcome.answered + outcome.refused + callers


@pytest.mark.parametrize("callers", [1, 3, 8, 20])
def test_littles_law_holds(callers: int) -> None:
    outcome = simulate_callers(SMALL, callers, seconds=60, warm_up=5)
    assert outcome.in_service == pytest.approx(outcome.calls_s * outcome.service_seconds, rel=0.01)
    assert outcome.in_service <= callers


def test_no_part_works_more_than_all_of_the_time() -> None:
    for one in (SMALL, REMEMBERED, replace(SMALL, teachers=1, students=8)):
        assert all(0 <= part <= 1 + 1e-9 for part in train(one).utilisation.values())


def test_one_caller_waits_for_its_own_work_alone() -> None:
    one = replace(SMALL, teachers=1, shard_sequences=1)
    answer_seconds = 256 * FORM.bytes_per_position / 1e9
    expected = SERVICE.request_seconds + SERVICE.sequence_seconds + SERVICE.batch_seconds
    expected += 256 * SERVICE.token_seconds + 2 * answer_seconds  # through the process, then through the network
    outcome = simulate_callers(one, 1, seconds=20, warm_up=1)
    assert 1 / outcome.questions_s == pytest.approx(expected, rel=0.01)


def test_a_cluster_short_of_teachers_goes_as_fast_as_their_models() -> None:
    starved = replace(SMALL, service=replace(SERVICE, token_seconds=1e-3))
    outcome = train(starved, steps=12, warm_up=6)
    bound = starved.step_tokens / demands(starved)["teacher_model"]
    assert outcome.tokens_s == pytest.approx(bound, rel=0.05)
    assert outcome.waiting > 0.5
    assert first_limit(starved, outcome) == "teacher_model"


def test_a_cluster_with_teachers_to_spare_goes_as_fast_as_its_students() -> None:
    spared = replace(REMEMBERED, teachers=8)
    outcome = train(spared)
    assert outcome.seconds / outcome.steps == pytest.approx(chain_seconds(spared), rel=0.05)
    assert outcome.computed == 0
    assert first_limit(spared, outcome) in ("student_compute", "student_sum")


@given(st.sampled_from(CODINGS), st.integers(1, 64), st.integers(1, 64), st.sampled_from([0.0, 0.9, 1.0]))
def test_the_bound_is_no_less_than_any_demand_and_falls_with_more_teachers(
    coding: Coding, teachers: int, students: int, ratio: float
) -> None:
    one = replace(cluster(coding), teachers=teachers, students=students, cache_ratio=ratio)
    assert set(demands(one)) == set(RESOURCES)
    assert least_step_seconds(one) >= max(demands(one).values())
    assert least_step_seconds(replace(one, teachers=teachers + 1)) <= least_step_seconds(one)


def test_a_redis_that_answers_too_late_is_left_alone_and_everything_computed() -> None:
    slow = replace(REMEMBERED, redis=Redis(value_seconds=1.0, timeout_seconds=0.01))
    outcome = train(slow)
    assert outcome.late > 0
    assert outcome.computed > 0
    assert first_limit(slow, outcome) == "patience_with_redis"


def test_an_answer_too_large_for_redis_is_never_remembered() -> None:
    large = replace(REMEMBERED, redis=Redis(max_value_bytes=1000))
    assert large.hits == 0
    assert demands(large)["redis"] == 0
    assert train(large).computed > 0


def test_an_answer_too_large_for_one_call_is_asked_for_in_parts() -> None:
    assert replace(SMALL, form=Form("dense", 2e6, 2e6), shard_sequences=4).part_sequences == 1
    assert SMALL.part_sequences == SMALL.shard_sequences


def test_a_checkpoint_holds_up_every_student() -> None:
    plain, saving = train(REMEMBERED), train(replace(REMEMBERED, save_steps=1, save_seconds=0.5))
    # The last one begins when the window ends.
    more = saving.seconds - plain.seconds
    assert more == pytest.approx(0.5 * plain.steps, rel=0.1)


def test_a_line_works_in_order_and_counts_what_it_has_done() -> None:
    env = simpy.Environment()
    line = Line(env)
    assert line.ends_after(2.0) == 2.0
    assert line.ends_after(1.0) == 3.0
    env.run(until=2.5)
    assert (line.busy_seconds, line.waiting_seconds) == (2.5, 0.5)
    env.run(until=10)
    assert (line.busy_seconds, line.waiting_seconds) == (3.0, 0.0)


def test_a_crowd_counts_heads_and_time() -> None:
    env = simpy.Environment()
    crowd = Crowd(env)
    came = crowd.enter()
    env.run(until=2)
    crowd.enter()
    env.run(until=3)
    crowd.leave(came)
    assert (crowd.present, crowd.area, crowd.stayed_seconds) == (1, 4.0, 3.0)


def test_nobody_leaves_a_meeting_before_all_have_come() -> None:
    env = simpy.Environment()
    meeting = Meeting(env, 2)
    first = meeting.join()
    seen = [first.triggered]
    second = meeting.join()
    seen += [first.triggered, meeting.join().triggered]
    assert second is first
    assert seen == [False, True, False]


def test_what_is_copied_from_the_service_is_as_it_is_there() -> None:
    assert teacher.CROWD_DECAY == batching._CROWD_DECAY
    assert teacher.REDIS_CONNECTIONS == redis_link._MAX_CONNECTIONS
    assert teacher.SLOWEST_BYTES_S == redis_link._LEAST_BYTES_PER_SECOND


def test_each_change_is_named_once() -> None:
    names = [change.name for change in changes()]
    assert len(set(names)) == len(names)
