"""The examples of docs/teacher.md work as they stand."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from teacher_service.http_door.requests import LogitsIn
from tests.integration.http.speaking import ServeTeacher

PAGE = Path(__file__).parents[3] / "docs" / "teacher.md"
EXAMPLES = re.findall(
    r"^```(sh|python|json)\n(.*?)^```", PAGE.read_text().partition("## The HTTP door")[2], re.DOTALL | re.MULTILINE
)


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return output.decode()


async def test_the_examples_run_as_they_stand(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    async with serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service:
        fingerprint = service.lifecycle.teacher.description.fingerprint
        printed = []
        for language, text in EXAMPLES:
            here = text.replace("localhost:8000", f"127.0.0.1:{service.http_port}")
            if language == "sh":
                printed.append(await run("bash", "-c", here))
            elif language == "python":
                printed.append(await run(sys.executable, "-c", here))
    curl, arrow, message, hidden = printed
    assert json.loads(curl)["payloads"][0]["texts"]
    assert arrow.startswith(fingerprint)
    assert re.fullmatch(rf"{fingerprint} \d+\n", message)
    assert re.fullmatch(r"\[\d+\]\n", hidden)


def test_the_encodings_are_as_they_are_read() -> None:
    lines = [line for language, text in EXAMPLES if language == "json" for line in text.splitlines()]
    assert len(lines) == 6
    for line in lines:
        asked = {"sequences": [], "encoding": json.loads(line)}
        assert LogitsIn.from_json(json.dumps(asked).encode()).to_request()
