"""`stillhouse eval STUDENT`: how good a student is, beside its teacher, live or from a store, or by itself.

The corpus comes from the same flags as in training, or from a recipe. Nothing heavy is imported until the verb runs.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stillhouse.cli.data_flags import data_flags, take_data
from stillhouse.data.spec import data_spec
from stillhouse.errors import ConfigurationError

if TYPE_CHECKING:
    from stillhouse.client import TeacherClient
    from stillhouse.data.spec import DataSpec
    from stillhouse.store.teacher import StoreTeacher
    from student_worker.evaluation.student import Teacher
    from student_worker.recipe.schema import Recipe

TOKEN_VARIABLES = ("STILLHOUSE_TEACHER_TOKEN", "STUDENT_TEACHER_TOKEN")


def _evaluate(
    student: Annotated[
        str,
        typer.Argument(help="A run's folder or its export, or any model: a folder, a hub name, a .gguf file, smollm2."),
    ],
    *,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher's address, gRPC or http://; none: plain perplexity.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="A store of the teacher's answers, instead of a teacher or before it; data is then its own."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Take teacher, store, data and tokenizer from this recipe, and evaluate on its held-out part."
        ),
    ] = None,
    no_teacher: Annotated[
        bool, typer.Option("--no-teacher", help="Plain perplexity, whatever the recipe says.")
    ] = False,
    part: Annotated[
        Literal["train", "held_out"] | None,
        typer.Option(help="Which part of the data: by default what is held out, else all of it."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="By default the recipe's, else the student's own.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a student from the hub.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="What the teacher answers with: auto (the default), hidden, dense or top_k:K.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or cuda:N.")] = None,
    ca: Annotated[str | None, typer.Option(help="TLS: PEM file of the teacher's authority, or system.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Mutual TLS: PEM file of our certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="Mutual TLS: PEM file of its private key.")] = None,
    timeout_seconds: Annotated[float | None, typer.Option(help="Deadline of one request; 120 by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too, as JSON.")] = None,
    data: dict[str, Any],
) -> None:
    """Evaluate a student on text: cross-entropy, perplexity, calibration, and how near it is to its teacher.

    A token is read from STILLHOUSE_TEACHER_TOKEN, else from STUDENT_TEACHER_TOKEN.
    """
    from stillhouse.kd.divergences import Divergence
    from stillhouse.logs import configure_logging
    from stillhouse.models import silence_transformers
    from student_worker.elastic.threads import settle_threads
    from student_worker.evaluation.student import Question, evaluate_student
    from student_worker.evaluation.table import print_report

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigurationError(f"--json {json_file}: there is no such folder")
    loaded = _load(recipe, data)
    if no_teacher and teacher is not None:
        raise ConfigurationError("--teacher and --no-teacher are both given; drop one")
    # A store that is named here stands in the place of the recipe's teacher.
    from_recipe = loaded.teacher if loaded is not None and store is None else None
    address = None if no_teacher else teacher or from_recipe
    stored = _open_store(store or (loaded.store if loaded else None), is_alone=address is None)
    given = {"--encoding": encoding, "--ca": ca, "--certificate": certificate, "--key": key}
    named = [flag for flag, value in given.items() if value is not None]
    if address is None and named and not (named == ["--encoding"] and stored is not None and not no_teacher):
        raise ConfigurationError(f"{named[-1]} has no effect without a teacher; name one by --teacher")
    configure_logging()
    silence_transformers()
    if loaded is not None:
        settle_threads(loaded)  # part of what makes the figures those of the run to the bit
    question = Question(
        student=student,
        revision=revision,
        data=_data(loaded, data, from_store=stored is not None),
        stored=stored,
        part=part,
        tokenizer=tokenizer or (loaded.tokenizer if loaded else None),
        encoding=encoding or (loaded.eval_encoding if loaded else "auto"),
        device=device or (loaded.device if loaded else "auto"),
        objective=(loaded.alpha, Divergence(loaded.loss, loaded.jsd_beta)) if loaded else None,
    )
    with ExitStack() as open_parts:
        client = None
        if address is not None:
            client = open_parts.enter_context(_client(address, loaded, ca, certificate, key, timeout_seconds))
        report = evaluate_student(question, None if no_teacher else _teacher(client, stored))
    print_report(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _open_store(address: str | None, *, is_alone: bool) -> StoreTeacher | None:
    if address is None:
        return None
    from stillhouse.store import open_store
    from stillhouse.store.teacher import StoreTeacher

    return StoreTeacher(open_store(address, allow_partial=not is_alone))


def _data(recipe: Recipe | None, data: Mapping[str, Any], *, from_store: bool) -> DataSpec | None:
    """Return the corpus that is named; None where the samples are a store's own."""
    if recipe is not None:
        return recipe.data if recipe.data.sources else None
    return None if from_store and not data else data_spec(data)


def _teacher(client: TeacherClient | None, stored: StoreTeacher | None) -> Teacher | None:
    """Return who answers: a teacher at work, a store, or the store first."""
    from stillhouse.store.teacher import StoreFirst, check_same_teacher
    from student_worker.evaluation.student import Teacher

    if client is None:
        return None if stored is None else Teacher(stored, stored.describe(), is_live=False)
    description = client.describe(include_tokens=True)
    if stored is None:
        return Teacher(client, description)
    check_same_teacher(stored, description)
    return Teacher(StoreFirst(stored, client), description)


def _load(recipe: Path | None, data: Mapping[str, Any]) -> Recipe | None:
    if recipe is None:
        return None
    if data:
        name = "data" if "sources" in data else next(iter(data)).replace("_", "-")
        raise ConfigurationError(f"--{name} is given, but the data is the recipe's; drop it, or --recipe")
    from student_worker.recipe.sources import load_recipe

    return load_recipe(recipe, {}, os.environ)


def _client(
    address: str,
    recipe: Recipe | None,
    ca: str | None,
    certificate: Path | None,
    key: Path | None,
    timeout_seconds: float | None,
) -> TeacherClient:
    from stillhouse.client import TeacherClient
    from stillhouse.credentials import credentials_for

    token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    if recipe is not None:
        token = token or (recipe.teacher_token.get_secret_value() if recipe.teacher_token else None)
        ca, certificate, key = (
            ca or recipe.teacher_ca,
            certificate or recipe.teacher_certificate,
            key or recipe.teacher_key,
        )
        timeout_seconds = timeout_seconds or recipe.request_timeout_seconds
    return TeacherClient(
        address,
        token=token,
        timeout_seconds=120.0 if timeout_seconds is None else timeout_seconds,
        credentials=credentials_for(address, ca, certificate, key),
    )


def evaluate(**values: Any) -> None:  # noqa: D103 - its help is that of `_evaluate`
    data = take_data(values)
    _evaluate(data=data, **values)


# typer reads a command's signature and its annotations: the corpus' flags are made of the schema.
_own = [
    parameter for name, parameter in inspect.signature(_evaluate, eval_str=True).parameters.items() if name != "data"
]
_parameters = [*_own, *data_flags()]
evaluate.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]  # functions take attributes
evaluate.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters}
evaluate.__doc__ = _evaluate.__doc__
