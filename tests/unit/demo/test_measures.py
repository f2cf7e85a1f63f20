"""What the demonstration reads while it watches."""

import json
from pathlib import Path

from stillhouse.demo.measures import MetricsTail, TeacherCounters, parse_teacher

PAGE = """\
# TYPE teacher_cache_requests_total counter
teacher_cache_requests_total{result="hit"} 30.0
teacher_cache_requests_total{result="miss"} 10.0
teacher_cache_requests_total{result="corrupt"} 5.0
# TYPE teacher_forward_tokens_total counter
teacher_forward_tokens_total 640.0
"""


def test_the_teachers_counters_are_read_by_name_and_result() -> None:
    assert parse_teacher(PAGE) == TeacherCounters(cache_hits=30, cache_misses=10, forward_tokens=640)


def test_a_pass_is_measured_from_its_start() -> None:
    pass_counters = parse_teacher(PAGE).since(TeacherCounters(cache_hits=10, cache_misses=10, forward_tokens=640))
    assert pass_counters == TeacherCounters(cache_hits=20, cache_misses=0, forward_tokens=0)
    assert pass_counters.hit_ratio == 1.0


def test_no_look_ups_are_no_hits() -> None:
    assert TeacherCounters().hit_ratio == 0.0


def test_a_metrics_file_is_read_from_where_it_stopped_and_a_half_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    first, second = json.dumps({"event": "step", "step": 1}), json.dumps({"event": "evaluation", "step": 1})
    path.write_text(f"{first}\n{second[:5]}")
    assert [record["step"] for record in tail.read()] == [1]
    path.write_text(f"{first}\n{second}\n")
    assert [record["event"] for record in tail.read()] == ["evaluation"]
    assert len(tail.of("step")) == len(tail.of("evaluation")) == 1
