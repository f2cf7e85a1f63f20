"""The figures of fronts add up to those of one service, and what was counted stays counted."""

from __future__ import annotations

import json

import pytest
from prometheus_client import generate_latest

from teacher_service.fronts.frames import FrameError
from teacher_service.fronts.samples import Figures, tell_samples
from teacher_service.metrics import Metrics
from teacher_service.request_notes import RequestNote


def service() -> tuple[Metrics, Figures]:
    metrics, figures = Metrics(), Figures()
    metrics.registry.adding = figures.added_to
    return metrics, figures


def front(*, ok: int = 0, hits: int = 0, in_flight: int = 0, paused: int = 0, seconds: float = 0.0) -> Metrics:
    metrics = Metrics()
    metrics.requests.labels("ComputeLogits", "OK").inc(ok)
    metrics.cache_requests.labels("hit").inc(hits)
    metrics.requests_in_flight.set(in_flight)
    metrics.cache_paused.set(paused)
    if seconds:
        metrics.request_duration.labels("ComputeLogits").observe(seconds)
    metrics.token_reloads.labels("used").inc()
    metrics.ready.set(1)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_counters_gauges_and_histograms_are_sums() -> None:
    metrics, figures = service()
    metrics.requests.labels("ComputeLogits", "OK").inc()
    metrics.requests_in_flight.set(1)
    figures.take(1, tell_samples(front(ok=2, hits=3, in_flight=4, seconds=0.02), []))
    figures.take(2, tell_samples(front(ok=10, in_flight=20, paused=1, seconds=7.0), []))
    assert value(metrics, "teacher_requests_total", method="ComputeLogits", code="OK") == 13
    assert value(metrics, "teacher_cache_requests_total", result="hit") == 3
    assert value(metrics, "teacher_requests_in_flight") == 25
    assert value(metrics, "teacher_cache_paused") == 1
    name, method = "teacher_request_duration_seconds", "ComputeLogits"
    assert value(metrics, f"{name}_count", method=method) == 2
    assert value(metrics, f"{name}_sum", method=method) == 7.02
    assert value(metrics, f"{name}_bucket", method=method, le="0.025") == 1
    assert value(metrics, f"{name}_bucket", method=method, le="+Inf") == 2


def test_what_the_engine_counts_for_itself_is_counted_once() -> None:
    metrics, figures = service()
    metrics.token_reloads.labels("used").inc()
    figures.take(1, tell_samples(front(), []))
    figures.take(2, tell_samples(front(), []))
    assert value(metrics, "teacher_token_reloads_total", result="used") == 1
    assert value(metrics, "teacher_ready") == 0
    assert value(metrics, "teacher_build_info", version="?") is None


def test_the_latest_word_of_a_front_counts() -> None:
    metrics, figures = service()
    for ok in (1, 2, 5):
        figures.take(1, tell_samples(front(ok=ok, in_flight=ok), []))
    assert value(metrics, "teacher_requests_total", method="ComputeLogits", code="OK") == 5
    assert value(metrics, "teacher_requests_in_flight") == 5


def test_what_a_front_that_died_had_counted_stays_counted() -> None:
    metrics, figures = service()
    for ok in (3, 4):
        figures.take(1, tell_samples(front(ok=ok, in_flight=9, paused=1), [RequestNote("a", "ComputeLogits")]))
        figures.bury(1)
    assert value(metrics, "teacher_requests_total", method="ComputeLogits", code="OK") == 7
    assert value(metrics, "teacher_requests_in_flight") == 0
    assert value(metrics, "teacher_cache_paused") == 0
    assert figures.slowest() == []
    figures.bury(1)
    assert value(metrics, "teacher_requests_total", method="ComputeLogits", code="OK") == 7


def test_the_page_of_metrics_has_each_family_once_and_its_buckets_in_order() -> None:
    metrics, figures = service()
    figures.take(1, tell_samples(front(ok=1, seconds=0.1), []))
    lines = generate_latest(metrics.registry).decode().splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(set(types)) == len(types)
    bounds = [line.split('le="')[1].split('"')[0] for line in lines if "request_duration_seconds_bucket" in line]
    assert bounds == sorted(bounds, key=float)
    assert bounds


def test_the_slowest_of_all_fronts_are_known() -> None:
    _, figures = service()
    notes = [RequestNote("a", "ComputeLogits", seconds=2.0, tokens=3), RequestNote("b", "StreamLogits")]
    for number, note in enumerate(notes):
        figures.take(number, tell_samples(Metrics(), [note]))
    assert figures.slowest() == notes


@pytest.mark.parametrize(
    "told", [b"", b"[]", b"{}", b'{"families": [[1]], "slowest": []}', b'{"families": [], "slowest": [{"x": 1}]}']
)
def test_what_no_front_tells_is_refused(told: bytes) -> None:
    metrics, figures = service()
    with pytest.raises(FrameError):
        figures.take(1, told)
    assert value(metrics, "teacher_requests_in_flight") == 0


def test_what_is_told_is_plain_json() -> None:
    assert set(json.loads(tell_samples(Metrics(), []))) == {"families", "slowest"}
