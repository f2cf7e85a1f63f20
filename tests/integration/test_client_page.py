"""The lines of Python in docs/client.md run as they stand, against real services."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme
import typer

from stillhouse.cli.main import build_app
from tests.integration.conftest import ServeTeacher

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
TOKEN = "0123456789abcdef"

BLOCKS = [str(block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture
async def addresses(
    serve_teacher: ServeTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[dict[str, str]]:
    """The page's addresses and the real ones: an open service, and one with tokens and mutual TLS."""
    monkeypatch.chdir(tmp_path)
    authority = trustme.CA()
    authority.cert_pem.write_to_path("ca.crt")
    for name in ("teacher", "trainer"):
        leaf = authority.issue_cert("127.0.0.1", "localhost")
        leaf.cert_chain_pems[0].write_to_path(f"{name}.crt")
        leaf.private_key_pem.write_to_path(f"{name}.key")
    tls = {"tls_certificate": Path("teacher.crt"), "tls_key": Path("teacher.key"), "tls_client_ca": Path("ca.crt")}
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(serve_teacher(fixture_vocabulary_size=100))
        closed = await stack.enter_async_context(serve_teacher(tokens=TOKEN, plain_port=0, **tls))
        monkeypatch.setenv("STILLHOUSE_TEACHER_TOKEN", TOKEN)
        yield {
            "localhost:8001": f"127.0.0.1:{plain.grpc_port}",
            "localhost:8000": f"127.0.0.1:{plain.http_port}",
            "gpu0:8001": f"127.0.0.1:{closed.grpc_port}",
        }


@pytest.mark.parametrize("index", range(len(BLOCKS)))
async def test_every_block_runs(index: int, addresses: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code = BLOCKS[index]
    for shown, real in addresses.items():
        code = code.replace(shown, real)
    names: dict[str, object] = {}
    await asyncio.to_thread(exec, code, names)
    said = capsys.readouterr().out
    assert said or "scores" in names
    if "scores" in names:
        assert list(names["scores"].shape) == [2, 3]  # type: ignore[attr-defined]  # a tensor
    if "rebuilt" in names:
        assert float(re.findall(r"tensor\((.*?)\)", said)[-1]) <= 1e-3


def test_every_option_that_the_page_names_is_one() -> None:
    named = set(re.findall(r"--[a-z][a-z-]*", PAGE.partition("## A load on a running teacher")[2])) - {"--help"}
    group = typer.main.get_command(build_app())
    teacher = group.commands["bench"].commands["teacher"]  # type: ignore[attr-defined]  # groups of commands
    assert named <= {option for parameter in teacher.params for option in parameter.opts}
