"""One id, from whoever asks to every line logged of it; and spans that know each other, where they are wanted."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import httpx
import pytest

from stillhouse import request_id
from stillhouse.client import AsyncTeacherClient
from stillhouse.errors import ConfigurationError, TeacherUnavailableError
from stillhouse.logs import configure_logging
from stillhouse.tracing import configure_tracing
from tests.integration.conftest import ServeTeacher


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


async def test_an_id_goes_from_the_client_to_the_teachers_log(
    serve_teacher: ServeTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    async with (
        serve_teacher(log_requests_over_seconds=0) as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        with request_id("run-7-step-120"):
            await client.logits([[1, 2, 3]])
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            answer = await http.post("/v1/logits", json={}, headers={"x-request-id": "no-question"})
        assert answer.headers["x-request-id"] == "no-question"
    text = capsys.readouterr().err
    named = [line for line in events(text, "request_answered") if line["request_id"] == "run-7-step-120"]
    (asked,) = [line for line in named if line["method"] == "ComputeLogits"]
    assert (asked["tokens"], asked["encoding"], asked["caller"]) == (3, "dense:f32", "anonymous")
    assert asked["compute_seconds"] > 0
    (failed,) = events(text, "request_failed")
    assert (failed["request_id"], failed["code"], failed["method"]) == ("no-question", "400", "POST v1/logits")


async def test_all_attempts_of_a_call_have_one_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "stillhouse.client")
    async with AsyncTeacherClient("127.0.0.1:1", max_attempts=2) as client:
        with pytest.raises(TeacherUnavailableError) as away:
            await client.describe()
    assert away.value.request_id
    assert f"request {away.value.request_id}: attempt 1 of 2" in caplog.text


@pytest.mark.parametrize(
    ("sent", "is_kept"), [("abc-1.2:3_x", True), ("x" * 65, False), ("a b", False), ('"}{"', False), ("", False)]
)
async def test_only_what_a_log_can_hold_is_taken_from_a_caller(
    serve_teacher: ServeTeacher, sent: str, is_kept: bool
) -> None:
    async with serve_teacher() as service, httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{service.http_port}/livez", headers={"x-request-id": sent})
        assert (answer.headers["x-request-id"] == sent) == is_kept
        assert answer.headers["x-request-id"]


def test_a_name_that_no_log_should_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 64"), request_id("two words"):
        pass


async def test_the_teachers_span_belongs_to_the_clients(serve_teacher: ServeTeacher, spans: Any) -> None:
    async with (
        serve_teacher(tokens="right-token-0123456789") as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", token="right-token-0123456789") as client,
    ):
        with request_id("traced"):
            await client.logits([[1, 2, 3]])
    traced = {one.name: one for one in spans.get_finished_spans()}
    call, answered = traced["teacher call"], traced["ComputeLogits"]
    assert answered.context.trace_id == call.context.trace_id
    assert answered.parent.span_id == call.context.span_id
    assert answered.attributes["request_id"] == call.attributes["request_id"] == "traced"
    assert answered.attributes["tokens"] == 3
    assert "right-token" not in str([one.attributes for one in spans.get_finished_spans()])


def test_tracing_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys; from stillhouse.tracing import configure_tracing, span; configure_tracing('x')\n"
        "with span('nothing', {'traceparent': '00-1-2-01'}): pass\n"
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigurationError, match="otlp and none"):
        configure_tracing("x")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"stillhouse\[otel\]"):
        configure_tracing("x")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_logs_are_for_people_on_a_terminal_and_for_programs_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    import structlog

    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    configure_logging("info", "auto")
    with structlog.contextvars.bound_contextvars(request_id="one"):
        structlog.get_logger("ours").info("answered", tokens=3)
    text = capsys.readouterr().err
    assert ("{" in text) is not is_terminal
    assert "answered" in text
    assert "one" in text
