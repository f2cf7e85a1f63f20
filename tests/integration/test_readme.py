"""The README's own lines of Python run as they stand, against a real teacher."""

import asyncio
import re
from pathlib import Path
from typing import Any

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
