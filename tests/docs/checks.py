"""What can be said of a command without running it: one check for each program that the pages name.

A check raises an `AssertionError` that says what is wrong. Commands of `stillhouse` are parsed by the command itself;
those of other programs are held against what they name (targets, files, services, extras) and, where the program is
installed, against its own help.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import pytest
import typer
import yaml

from benchmarks.__main__ import app as benchmarks_app
from benchmarks.__main__ import questions
from stillhouse.cli.main import build_app
from tests.docs.pages import ROOT, Command, words_of

Words = list[str]

PLACEHOLDERS = {"N": "1", "E": "hidden", "FOLDER": "folder", "SERVICE": "teacher-service"}
"""Words in capitals that a sentence leaves to the reader, where any value will not do."""

TESTED_BY = {
    "make demo": "tests/e2e/test_real_demo.py",
    "make test": "tests",
    "stillhouse demo": "tests/e2e/test_demo.py",
    "stillhouse compare": "tests/e2e/test_compare.py",
}
"""Commands that take minutes however small, and the test that runs what they run."""


def check(command: Command) -> None:
    """Check a command by the rule for its program; a command that no rule covers is an error."""
    for program, piped in groupby(words_of(command.text), key=lambda word: word != "|"):
        if not program:
            continue
        words = list(piped)
        rule = RULES.get(words[0])
        assert rule is not None, f"no rule covers {words[0]!r}: add one to {__name__}, or run it on its page"
        rule([PLACEHOLDERS.get(word, word) for word in words], command)


def _stillhouse(words: Words, command: Command) -> None:
    parse(build(), words[1:], whole=command.whole)


def parse(group: Any, words: Words, *, whole: bool = True) -> None:
    """Parse flags and arguments as the command would, and run nothing; a sentence may name a verb alone."""
    verb, rest = group, list(words)
    while rest and rest[0] in getattr(verb, "commands", {}):
        verb = verb.commands[rest.pop(0)]
    if not whole and words and not rest:
        assert verb is not group
        return
    if getattr(verb, "commands", None):
        assert not rest or rest[0].startswith("-"), f"{verb.name} has no verb {rest[0]!r}"
    try:
        verb.make_context(verb.name, rest)
    except typer.Exit:  # --help and --version print, and leave
        return
    except Exception as error:
        message = getattr(error, "format_message", error.__str__)()
        raise AssertionError(f"{shlex.join(words)}: {message}") from error


@cache
def build() -> Any:
    """Return the whole command, built once."""
    return typer.main.get_command(build_app())


def _make(words: Words, _: Command) -> None:
    # A test run by make is not a make of its own: it would be handed the other's flags.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    asked = ["make", "--dry-run", *words[1:]]
    told = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def _pip(words: Words, _: Command) -> None:
    assert words[1] == "install"
    for name in (word for word in words[2:] if not word.startswith("-")):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if extra := re.fullmatch(r"stillhouse\[([\w,]+)\]", name):
            assert set(extra[1].split(",")) <= project["optional-dependencies"].keys(), name
        else:
            assert name in (ROOT / "Makefile").read_text(encoding="utf-8"), f"make installs no {name}"


def _python(words: Words, _: Command) -> None:
    if words[1:3] == ["-m", "benchmarks"]:
        parse(typer.main.get_command(benchmarks_app), words[3:])
        assert words[3] != "run" or words[4] in {*questions(), "all"}, f"no benchmark is called {words[4]}"
    elif words[1] == "-c":
        compile(words[2], "the command", "exec")
    elif words[1] == "loop.py":
        return  # The page's own file: it is run where the page is.
    else:
        assert (ROOT / words[1]).exists(), words[1]


def _docker(words: Words, _: Command) -> None:
    if words[1] == "compose":
        return _compose(words[2:])
    verb, rest = words[1], words[2:]
    if verb == "build":
        file = ROOT / rest[rest.index("-f") + 1]
        declared = set(re.findall(r"^ARG (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
        given = {value.partition("=")[0] for flag, value in pairwise(rest) if flag == "--build-arg"}
        assert given <= declared, f"{file.name} declares {declared}"
    return _has_flags(["docker", verb], rest)


def _compose(words: Words) -> None:
    files: Words = []
    profiles: Words = []
    rest = list(words)
    while rest[0].startswith("-"):
        flag, value = rest.pop(0), rest.pop(0)
        {"-f": files, "--profile": profiles}[flag].append(value)
    services: dict[str, Any] = {}
    for file in files or ["docker-compose.yml"]:
        services |= yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"]
    known = {name for service in services.values() for name in service.get("profiles", [])}
    assert set(profiles) <= known, f"the profiles are {known}"
    verb, *rest = rest
    named = [word.partition("=")[0] for flag, word in pairwise(rest) if flag == "--scale"]
    if verb in ("exec", "run"):
        named += [word for word in rest if not word.startswith("-")][:1]
    elif verb in ("logs", "up", "ps", "stop"):
        taken = {index + 1 for index, word in enumerate(rest) if word in ("--scale", "--tail")}
        named += [word for index, word in enumerate(rest) if not word.startswith("-") and index not in taken]
    else:
        raise AssertionError(f"docker compose {verb}: say how to check it")
    assert set(named) <= services.keys(), f"the services are {sorted(services)}"
    _has_flags(["docker", "compose", verb], rest)
    _fit_together(tuple(files or ["docker-compose.yml"]))


@cache
def _fit_together(files: tuple[str, ...]) -> None:
    # With no variables of a developer's own, as a clean checkout has it.
    named = [word for file in files for word in ("--file", file)]
    _run(["docker", "compose", "--env-file", os.devnull, *named, "config", "--quiet"])


def _kubectl(words: Words, _: Command) -> None:
    rest = words[3:] if words[1] == "-n" else words[1:]
    verb = rest[0]
    if verb == "apply":
        _built(rest[rest.index("-k") + 1])
    elif verb == "patch":
        kind, name = rest[1:3]
        patch = json.loads(rest[rest.index("-p") + 1])
        text = _built("deploy/kubernetes/overlays/gpu")
        (job,) = (
            one for one in yaml.safe_load_all(text) if (one["kind"].lower(), one["metadata"]["name"]) == (kind, name)
        )
        assert patch["spec"].keys() <= job["spec"].keys()
    elif verb == "create":
        # What a folder of secrets makes is seen where the page is run.
        told = [word for word in rest if not word.startswith("--from-file")]
        _run(["kubectl", *told, "--dry-run=client", "--output=name"])
    else:
        _has_flags(["kubectl", verb], rest[1:])


@cache
def _built(folder: str) -> str:
    return _run(["kubectl", "kustomize", str(ROOT / folder)])


def _promtool(words: Words, _: Command) -> None:
    _run(words)


def _jq(words: Words, _: Command) -> None:
    line = {"timestamp": "2026-01-01T00:00:00Z", "level": "info", "event": "step"}
    assert _run(words, json.dumps(line)) == "2026-01-01T00:00:00Z\tinfo\tstep\n"


def _has_flags(program: Words, words: Words) -> None:
    """See that a program's own help names the verb and its flags."""
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    told = _run([*program, "--help"])
    assert [flag for flag in sorted(flags) if not re.search(rf"(?<![\w-]){flag}(?![\w-])", told)] == []


def _run(words: Words, given: str = "") -> str:
    if shutil.which(words[0]) is None:
        pytest.skip(f"NOT TESTED: {words[0]} is not installed")
    if words[:2] == ["docker", "compose"] and not _docker_has_compose():
        pytest.skip("NOT TESTED: Docker has no Compose of v2")
    told = subprocess.run(words, cwd=ROOT, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, f"{shlex.join(words)}: {told.stderr}"
    return told.stdout


@cache
def _docker_has_compose() -> bool:
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


RULES: dict[str, Callable[[Words, Command], None]] = {
    "stillhouse": _stillhouse,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "docker": _docker,
    "kubectl": _kubectl,
    "promtool": _promtool,
    "jq": _jq,
}
