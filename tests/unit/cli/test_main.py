"""Whatever a verb ends with, the command says it in one line and by its exit code."""

import sys
from importlib.metadata import EntryPoint

import pytest
import typer

from stillhouse.cli.main import COMMAND_GROUP, build_app, run
from stillhouse.errors import ConfigurationError, GuardError


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def verb() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("port 8000\nis taken"), 2),
        (OSError("disk full"), 2),
        (GuardError("the loss is nan"), 3),
        (KeyboardInterrupt(), 143),
        (typer.Exit(7), 7),
        (ModuleNotFoundError("No module named 'torchft'", name="torchft"), 2),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app_that_raises(error), "stillhouse", []) == code
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_missing_package_is_named_with_what_brings_it(capsys: pytest.CaptureFixture[str]) -> None:
    run(app_that_raises(ModuleNotFoundError(name="torchft.process_group")), "stillhouse", [])
    error = capsys.readouterr().err
    assert "torchft" in error
    assert "pip install" in error


def test_a_fault_of_our_own_is_not_taken_for_a_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError):
        run(app_that_raises(ModuleNotFoundError(name="stillhouse.no_such_module")), "stillhouse", [])


def test_a_wrong_flag_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that_raises(OSError()), "stillhouse", ["--no-such-flag"]) == 2
    assert "--no-such-flag" in capsys.readouterr().err


def say_hello(name: str, loud: bool = False) -> None:
    """Greet somebody."""
    typer.echo(f"{'HELLO' if loud else 'hello'} {name}")


def with_entries(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    entries = [EntryPoint(name, value, COMMAND_GROUP) for name, value in values.items()]
    # By `sys.modules`, since the package has a function of the module's name.
    monkeypatch.setattr(sys.modules["stillhouse.cli.main"], "entry_points", lambda **_: entries)


def test_an_entry_point_that_is_a_function_becomes_a_verb_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_entries(monkeypatch, greet=f"{__name__}:say_hello")
    assert run(build_app(), "stillhouse", ["greet", "there", "--loud"]) == 0
    assert capsys.readouterr().out == "HELLO there\n"


@pytest.mark.parametrize("arguments", [["watch"], ["watch", "this", "--closely", "--seconds=3"], ["watch", "--", "-x"]])
def test_a_verb_whose_extra_is_missing_says_which_one_whatever_it_is_given(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_entries(monkeypatch, watch="student_worker.no_such_module:watch")
    assert run(build_app(), "stillhouse", arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "`stillhouse watch` needs packages" in line
    assert "pip install 'stillhouse[student]'" in line


def test_the_help_still_shows_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_entries(monkeypatch, watch="teacher_service.no_such_module:app")
    assert run(build_app(), "stillhouse", ["--help"]) == 0
    assert "stillhouse[teacher]" in capsys.readouterr().out
