"""Both services' metrics as Prometheus itself reads them: names, types and units hold against its linter."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stillhouse.version import __version__
from student_worker.callbacks import RunView, StepRecord
from student_worker.metrics import WorkerMetrics
from teacher_service.metrics import Metrics
from tests.integration.conftest import ServeTeacher

TEACHER = {
    "teacher_requests", "teacher_request_duration_seconds", "teacher_queue_duration_seconds",
    "teacher_compute_duration_seconds", "teacher_encode_duration_seconds", "teacher_queue_size",
    "teacher_batch_tokens", "teacher_padding_tokens", "teacher_shed", "teacher_cache_requests",
    "teacher_response_bytes", "teacher_build_info", "teacher_device_memory_bytes", "process_resident_memory_bytes",
}  # fmt: skip
STUDENT = {
    "student_steps", "student_tokens", "student_loss", "student_step_duration_seconds",
    "student_teacher_wait_seconds", "student_world_size", "student_checkpoint_age_seconds", "student_phase_seconds",
    "student_guard_stops", "student_build_info", "student_device_memory_bytes", "process_resident_memory_bytes",
}  # fmt: skip

# Every label that there may be: whatever a caller can make up stands in none of them.
LABELS = {
    "method", "code", "reason", "result", "encoding", "caller", "error", "version", "commit", "torch", "device",
    "kind", "term", "phase", "figure", "le",
}  # fmt: skip


def lint(text: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NOT CHECKED BY PROMETHEUS: promtool is not here (Debian has it in the package prometheus)")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def families(text: str) -> set[str]:
    return {family.name for family in text_string_to_metric_families(text)}


def labels(text: str) -> Iterable[str]:
    return {name for family in text_string_to_metric_families(text) for one in family.samples for name in one.labels}


async def served_text(serve_teacher: ServeTeacher) -> str:
    from stillhouse.client import AsyncTeacherClient

    async with serve_teacher() as service:
        async with AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client:
            await client.logits([[1, 2, 3]])
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            assert (await http.get("/whatever/somebody/makes/up")).status_code == 404
            return (await http.get("/metrics")).text


async def test_the_teachers_metrics_are_all_there_and_of_base_units(serve_teacher: ServeTeacher) -> None:
    text = await served_text(serve_teacher)
    assert families(text) >= TEACHER
    assert set(labels(text)) <= LABELS
    assert "makes/up" not in text
    assert f'version="{__version__}"' in text
    lint(text)


def test_the_students_metrics_are_all_there_and_of_base_units() -> None:
    metrics = worker_metrics()
    text = generate_latest(metrics.registry).decode()
    assert families(text) >= STUDENT
    assert set(labels(text)) <= LABELS
    lint(text)


def worker_metrics() -> WorkerMetrics:
    metrics = WorkerMetrics()
    run = RunView(Path(), "run", 1, 5, is_first=True)
    metrics.on_step_end(run, StepRecord(1, 1.5, 2.0, 1.0, 1e-3, 1.0, 512, 2048.0, 0.125, 0.25, 2, 640))
    with metrics.timing("compute"):
        pass
    return metrics


def test_a_phase_is_counted_though_its_block_fails() -> None:
    metrics = WorkerMetrics()
    with pytest.raises(ValueError, match="no"), metrics.timing("reduce"):
        raise ValueError("no")
    assert metrics.phase_seconds["reduce"] > 0
    assert metrics.phase_seconds["compute"] == 0


def test_a_loss_that_stops_the_run_is_shown() -> None:
    metrics = WorkerMetrics()
    metrics.stopped_by_guard("not_finite", float("nan"))
    text = generate_latest(metrics.registry).decode()
    assert 'student_guard_stops_total{reason="not_finite"} 1.0' in text
    assert 'student_loss{term="total"} NaN' in text


def test_a_fresh_registry_lints_before_anything_has_happened() -> None:
    lint(generate_latest(Metrics().registry).decode())
