"""Every command that a page shows or names is one that there is, with flags and files that there are.

That those of `stillhouse` do what their page says, `test_pages_run.py` sees by running them in order.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.docs.checks import TESTED_BY, check
from tests.docs.pages import PAGES, ROOT, Command, commands, fences
from tests.docs.running import runs

NO_COMMAND = {"stillhouse draws": "the label under which draws are hashed"}

COMMANDS = [command for page in PAGES for command in commands(page) if command.text not in NO_COMMAND]


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if not runs(one) or one.text.startswith("stillhouse")], ids=str
)
def test_the_command_is_one_that_there_is(command: Command) -> None:
    check(command)


def test_what_runs_elsewhere_has_its_test() -> None:
    for begin, path in TESTED_BY.items():
        assert any(f"{command.text} ".startswith(f"{begin} ") for command in COMMANDS), begin
        assert (ROOT / path).exists()


def test_every_variable_of_a_deployment_is_one() -> None:
    (block,) = fences("docs/deployment.md", "ini")
    explained = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = re.findall(r"^(\w+)=", block.text, re.MULTILINE)
    assert len(names) > 3
    assert [name for name in names if not re.search(rf"^#? ?{name}=", explained, re.MULTILINE)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "stillhouse student trian recipe.yaml",
        "stillhouse student train --lerning-rate 1",
        "stillhouse teacher serve --max-batch-tokns 4",
        "make tea",
        "make install && rm notes.txt",
        "pip install 'stillhouse[studnet]'",
        "python -m benchmarks run encodigns",
        "python deploy/docker/make_key.py keys",
        "docker compose up -d --scale student-workers=2",
        "docker compose --profile monitor up -d",
        "docker compose -f docker-compose.yml -f deploy/compose/gpu.yml up -d",
        "docker build -f deploy/docker/teacher.Dockerfile --build-arg COMMITS=1 .",
        "kubectl apply -k deploy/kubernetes/overlays/gpus",
        "ssh gpu0",
    ],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        check(replace(COMMANDS[0], text=wrong))
