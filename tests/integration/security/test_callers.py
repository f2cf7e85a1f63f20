"""Tokens that change while the service runs, and how much one caller may have in flight."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from stillhouse.errors import OverloadedError, UnauthenticatedError
from stillhouse.request import LogitsRequest, Sequence
from teacher_service import token_watch
from teacher_service.service import TeacherService
from tests.integration.raw_calls import value
from tests.integration.security.conftest import ServeTeacher
from tests.integration.security.speaking import FIRST, SECOND, THIRD, GatedBackend, client_of
from tests.waiting import until


async def is_let_in(service: TeacherService, token: str) -> bool:
    async with client_of(service, token) as client:
        try:
            await client.describe()
        except UnauthenticatedError:
            return False
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
        answer = await http.get("/v1/teacher", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200
    return True


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files more often than a service does, so that a test need not wait."""
    monkeypatch.setattr(token_watch, "CHECK_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_looks")
async def test_tokens_change_with_their_file_however_it_is_replaced(
    serve_teacher: ServeTeacher, tmp_path: Path
) -> None:
    # As Kubernetes mounts a secret: the name is a link into a folder that is itself a link.
    for version, token in (("1", FIRST), ("2", SECOND)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens").write_text(f"trainer {token}\n")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "tokens").symlink_to("data/tokens")
    async with serve_teacher(tokens_file=tmp_path / "tokens") as service:

        def reloads() -> float:
            return value(service, "teacher_token_reloads_total", result="used")

        assert await is_let_in(service, FIRST)
        (tmp_path / "data.new").symlink_to("2")
        (tmp_path / "data.new").replace(tmp_path / "data")
        await until(lambda: reloads() == 1)
        assert await is_let_in(service, SECOND)
        assert not await is_let_in(service, FIRST)
        (tmp_path / "2" / "tokens").write_text(f"trainer {SECOND}\ntrainer {THIRD}\n")
        await until(lambda: reloads() == 2)
        assert await is_let_in(service, SECOND)
        assert await is_let_in(service, THIRD)


@pytest.mark.usefixtures("quick_looks")
async def test_a_broken_file_keeps_the_tokens_of_before(
    serve_teacher: ServeTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"trainer {FIRST}\n")
    async with serve_teacher(tokens_file=file) as service:
        file.write_text("")
        await until(lambda: value(service, "teacher_token_reloads_total", result="refused") == 1)
        assert await is_let_in(service, FIRST)
        file.write_text(f"trainer {SECOND} everything\n")
        await until(lambda: value(service, "teacher_token_reloads_total", result="refused") == 2)
        assert await is_let_in(service, FIRST)
        file.unlink()
        await until(lambda: value(service, "teacher_token_reloads_total", result="refused") == 3)
        file.write_text(f"trainer {SECOND}\n")
        await until(lambda: value(service, "teacher_token_reloads_total", result="used") == 1)
        assert not await is_let_in(service, FIRST)
    log = capsys.readouterr().out
    assert "tokens_kept" in log
    assert FIRST not in log
    assert SECOND not in log


async def test_one_caller_cannot_take_all_places(serve_teacher: ServeTeacher, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"greedy {FIRST}\nmodest {SECOND}\n")
    backend = GatedBackend()
    async with (
        serve_teacher(None, backend, tokens_file=file, max_requests_per_token=2) as service,
        client_of(service, FIRST) as greedy,
        client_of(service, SECOND) as modest,
    ):
        await greedy.describe()
        asked = [asyncio.create_task(greedy.answer(LogitsRequest((Sequence((n,)),)))) for n in range(2)]
        await until(lambda: value(service, "teacher_caller_requests", caller="greedy") == 2)
        with pytest.raises(OverloadedError, match="greedy has 2 requests in flight") as refusal:
            await greedy.answer(LogitsRequest((Sequence((3,)),)))
        assert 0 < refusal.value.retry_after_seconds < 10
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            headers = {"authorization": f"Bearer {FIRST}"}
            answer = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]}, headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        await modest.describe()
        backend.gate.set()
        await asyncio.gather(*asked)
        await until(lambda: value(service, "teacher_caller_requests", caller="greedy") == 0)
        await greedy.answer(LogitsRequest((Sequence((3,)),)))


async def test_no_name_is_without_a_limit(serve_teacher: ServeTeacher, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"anonymous {FIRST}\n")
    async with serve_teacher(tokens_file=file, max_requests_per_token=1) as service:
        place = service._admission.enter(f"Bearer {FIRST}")
        with pytest.raises(OverloadedError):
            service._admission.enter(f"Bearer {FIRST}")
        place.leave()


async def test_a_service_that_nobody_may_ask_says_so(
    serve_teacher: ServeTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve_teacher(scrape_token=SECOND):
        assert "nobody_may_ask" in capsys.readouterr().out
    async with serve_teacher(tokens=FIRST, scrape_token=SECOND), serve_teacher():
        assert "nobody_may_ask" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "is_wide"),
    [("127.0.0.1", False), ("localhost", False), ("LOCALHOST", False), ("127.0.0.2", False), ("0.0.0.0", True)],  # noqa: S104 - what is warned of
)
async def test_a_wide_bind_without_a_token_is_warned_of(
    serve_teacher: ServeTeacher, capsys: pytest.CaptureFixture[str], host: str, is_wide: bool
) -> None:
    async with serve_teacher(host=host):
        assert ("open_to_all" in capsys.readouterr().out) == is_wide
