"""Whatever a verb ends with, the command says it in one line and by its exit code."""

import pytest
import typer

from stillhouse.cli.main import run
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
