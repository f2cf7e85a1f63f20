"""Builds the command from its verbs, and turns every error raised on purpose into one line and an exit code.

The services' verbs are entry points of the group `stillhouse.commands`: the library never imports a service. An entry
that is a typer app becomes a verb with verbs of its own (`stillhouse student train`), a plain function one by itself
(`stillhouse eval`). Its module is imported to show its help, so it leaves heavy imports to the moment when it runs.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import Annotated

import typer
from pydantic import ValidationError

from stillhouse.errors import GuardError, StillhouseError
from stillhouse.thread_waiting import spin_briefly
from stillhouse.version import version_text

EXIT_DONE = 0
EXIT_WRONG_INPUT = 2
EXIT_GUARD = 3
EXIT_INTERRUPTED = 143

TYPER_INTERRUPTED = 130
"""What typer itself makes of a KeyboardInterrupt inside a verb, before `run` can see it."""

COMMAND_GROUP = "stillhouse.commands"

OUR_PACKAGES = ("stillhouse", "teacher_service", "student_worker")
EXTRA_BY_PACKAGE = {"teacher_service": "teacher", "student_worker": "student"}
OWN_VERBS = {
    "data": "stillhouse.cli.data:app",
    "tokenizers": "stillhouse.cli.tokenizers:app",
    "store": "stillhouse.cli.store:app",
    "bench": "stillhouse.cli.bench:app",
    "capture": "stillhouse.cli.capture:capture",
    "demo": "stillhouse.cli.demo:demo",
    "doctor": "stillhouse.cli.doctor:doctor",
}
EXTRAS = "pip install 'stillhouse[teacher]', 'stillhouse[student]', 'stillhouse[demo]' or 'stillhouse[all]'"

# What is not installed can't know its own flags: it explains itself whatever it is given.
_TAKES_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}

# Newer versions of typer carry a click of their own: the base of its errors is found through one that it exports.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"stillhouse {version_text()}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and the commit, and exit."
        ),
    ] = False,
) -> None:
    """Distil language models with the teacher as a service."""


def _missing_part(entry: EntryPoint, error: ImportError) -> Callable[[], None]:
    """Stand in for a verb whose packages are not installed: say which extra brings them, whatever was asked of it."""
    extra = EXTRA_BY_PACKAGE.get(entry.module.partition(".")[0])
    remedy = f"pip install 'stillhouse[{extra}]'" if extra else f"install what {entry.module} needs"

    def explain() -> None:
        _complain(f"`stillhouse {entry.name}` needs packages that are not installed ({error.name or error}): {remedy}")
        raise typer.Exit(EXIT_WRONG_INPUT)

    # Help is written in rich's markup, to which [student] would be a style.
    explain.__doc__ = f"Not installed: {remedy}.".replace("[", r"\[")
    return explain


def _add_verb(app: typer.Typer, entry: EntryPoint) -> None:
    try:
        verb = entry.load()
    except ImportError as error:
        app.command(entry.name, context_settings=_TAKES_ANYTHING)(_missing_part(entry, error))
        return
    if isinstance(verb, typer.Typer):
        app.add_typer(verb, name=entry.name)
    else:
        app.command(entry.name)(verb)


def build_app(asked: str | None = None) -> typer.Typer:
    """Return the whole command, with every verb that is installed; of those, only the one that is asked for, if any."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    found = sorted(entry_points(group=COMMAND_GROUP), key=lambda entry: entry.name, reverse=True)
    verbs = [*found, *(EntryPoint(name, value, COMMAND_GROUP) for name, value in OWN_VERBS.items())]
    for entry in [verb for verb in verbs if verb.name == asked] or verbs:
        _add_verb(app, entry)
    return app


def run(app: typer.Typer, prog_name: str, arguments: list[str] | None = None) -> int:
    """Run a typer app with the exit codes of the house; return the code instead of leaving.

    Each service's `__main__` calls this too, so that `python -m` and the command agree.
    """
    spin_briefly()
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name=prog_name, standalone_mode=False)
    except _UsageError as error:
        # Without any verb the help has been shown, and nothing is left to say.
        if usage := _usage(error):
            _complain(usage)
        return EXIT_WRONG_INPUT
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except GuardError as error:
        _complain(error)
        return EXIT_GUARD
    except ModuleNotFoundError as error:
        # A verb's own packages are imported when it runs. With ours missing it is a fault, which a trace serves better.
        if (error.name or "").partition(".")[0] in OUR_PACKAGES:
            raise
        _complain(f"{error.name} is not installed; each part has an extra that brings what it needs: {EXTRAS}")
        return EXIT_WRONG_INPUT
    except (StillhouseError, OSError) as error:
        _complain(error)
        return EXIT_WRONG_INPUT
    if result == TYPER_INTERRUPTED:
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else EXIT_DONE


def _usage(error: Exception) -> str:
    """Return what was wrong with the flags: the option, what it takes, and what was given."""
    # What `str` gives lacks the option's name; `format_message` has it. Neither has the value, of which pydantic knows.
    message = str(getattr(error, "format_message", error.__str__)())
    if not isinstance(error.__cause__, ValidationError):
        return message
    return f"{message}, not {error.__cause__.errors()[0]['input']!r}"


def _complain(error: BaseException | str) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - a command speaks to its user


def _interrupt(_signal_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the `stillhouse` command."""
    # A verb with a loop of its own installs its own handlers; for the rest SIGTERM is the same as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    # A verb that is named needs no other: each of them imports what its flags are made of.
    asked = sys.argv[1] if len(sys.argv) > 1 else None
    # What is imported stays: to look through it for garbage while more comes is a tenth of the time to `--help`.
    gc.disable()
    app = build_app(asked)
    gc.freeze()
    gc.enable()
    sys.exit(run(app, "stillhouse"))
