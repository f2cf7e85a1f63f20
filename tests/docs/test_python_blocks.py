"""The pages' Python compiles, and takes from our packages what is there; the tests named for a page run most of it."""

from __future__ import annotations

import ast
import importlib

import pytest

from tests.docs.pages import PAGES, Fence, fences

OURS = ("stillhouse", "teacher_service", "student_worker")
BLOCKS = [fence for page in PAGES for fence in fences(page, "python")]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda fence: f"{fence.page}:{fence.line}")
def test_the_block_compiles_and_finds_what_it_imports(block: Fence) -> None:
    tree = ast.parse(block.text, f"{block.page}:{block.line}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in OURS:
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == [], f"{node.module} has none of these"


def test_there_are_blocks() -> None:
    assert len(BLOCKS) > 15
