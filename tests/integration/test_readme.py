"""The README's own lines of Python run as they stand, against a real teacher."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.conftest import ServeTeacher

ROOT = Path(__file__).resolve().parents[2]


def readme_block() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks, "the README shows no Python"
    return str(blocks[0])


async def test_the_readmes_training_loop_lowers_its_loss(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    vocabulary_size = 300
    async with serve_teacher(fixture_vocabulary_size=vocabulary_size) as service:
        # The reader's own address, student and data; every other character is the README's.
        code = readme_block().replace("localhost:8001", f"127.0.0.1:{service.grpc_port}")
        code = code.replace('"my-student"', repr(str(tiny_llama_folder)))
        code = re.sub(r"^( +)loss\.backward\(\)", r"\1losses.append(loss.item())\n\1loss.backward()", code, flags=re.M)
        batch = torch.randint(vocabulary_size, (2, 8), generator=torch.Generator().manual_seed(0))
        names: dict[str, Any] = {"batches": [batch] * 8, "losses": []}
        await asyncio.to_thread(exec, code, names)
        names["teacher"].close()
    assert len(names["losses"]) == 8
    assert names["losses"][-1] < names["losses"][0]


def test_the_first_screen_says_what_it_is_and_shows_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    text = "\n".join(first_screen)
    assert "make demo" in text
    assert "make test" in text
    picture = re.search(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert picture is not None
    assert (ROOT / picture[1]).exists()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []
