"""`stillhouse doctor`: looks at this machine, and at a deployment where one is named, and says what to do.

Secrets come from the environment, since other users of a machine can read a command line. Nothing heavy is imported
until the verb runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stillhouse.doctor.finding import Check, Finding

TOKEN_VARIABLES = ("STILLHOUSE_TEACHER_TOKEN", "STUDENT_TEACHER_TOKEN")
REDIS_VARIABLES = ("STILLHOUSE_REDIS_URL", "TEACHER_REDIS_URL")

EXIT_PROBLEMS = 2

_MARKS = {"ok": "ok      ", "note": "note    ", "problem": "PROBLEM "}


def doctor(
    teacher: Annotated[
        str | None, typer.Option(help="A teacher's address, gRPC or http://. Its token: STILLHOUSE_TEACHER_TOKEN.")
    ] = None,
    http: Annotated[list[str] | None, typer.Option(help="A service's HTTP address; several are looked at.")] = None,
    lighthouse: Annotated[str | None, typer.Option(help="Where workers meet, host:port.")] = None,
    run: Annotated[Path | None, typer.Option(help="A run's folder: is this the teacher that it began with?")] = None,
    disk: Annotated[
        list[Path] | None, typer.Option(help="A folder that will be written to; by default this one.")
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option(help="A port to be served on; by default 8000, 8001, 8010 and 29510.")
    ] = None,
    teacher_ca: Annotated[str | None, typer.Option(help="TLS: the authority's PEM file, or system.")] = None,
    teacher_certificate: Annotated[Path | None, typer.Option(help="TLS: this caller's own certificate.")] = None,
    teacher_key: Annotated[Path | None, typer.Option(help="TLS: that certificate's key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a list of findings.")] = False,
) -> None:
    """Check a machine or a deployment: what is wrong, and what to do. Redis: STILLHOUSE_REDIS_URL.

    The exit code is 0 where all is well, notes included, and 2 where there is a problem.
    """
    from stillhouse.doctor import deployment, machine
    from stillhouse.doctor.finding import run_checks

    checks: list[tuple[str, Check]] = [
        ("release", machine.release),
        ("GPU", machine.gpu),
        ("memory", machine.memory),
        ("disk", partial(machine.disk, disk or [Path.cwd()])),
        ("open files", machine.open_files),
        ("ports", partial(machine.ports, port or list(machine.PORTS))),
        ("tokens", partial(machine.secrets_of, dict(os.environ))),
        ("clock", machine.clock),
    ]
    token = _first_of(TOKEN_VARIABLES)
    if teacher is not None:
        at = deployment.TeacherAt(teacher, token, teacher_ca, teacher_certificate, teacher_key)
        checks.append(("teacher", partial(deployment.teacher, at, run)))
    checks += [("HTTP", partial(deployment.http, url, token)) for url in http or ()]
    redis_url = _first_of(REDIS_VARIABLES)
    if redis_url is not None:
        checks.append(("Redis", partial(deployment.redis, redis_url)))
    if lighthouse is not None:
        checks.append(("lighthouse", partial(deployment.lighthouse, lighthouse)))
    found = []
    for finding in run_checks(checks):
        found.append(finding)
        if not as_json:
            _say(finding)
    counts = Counter(finding.tone for finding in found)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        typer.echo(f"{counts['problem']} problems, {counts['note']} notes, {counts['ok']} as they should be")
    if counts["problem"]:
        raise typer.Exit(EXIT_PROBLEMS)


def _say(finding: Finding) -> None:
    colour = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "problem": typer.colors.RED}[finding.tone]
    mark = typer.style(_MARKS[finding.tone], fg=colour) if sys.stdout.isatty() else _MARKS[finding.tone]
    typer.echo(f"{mark}{finding.about}: {finding.said}")
    if finding.remedy:
        typer.echo(f"        -> {finding.remedy}")


def _first_of(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)
