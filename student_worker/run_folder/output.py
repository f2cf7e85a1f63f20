"""The folder of a run: whose it is, and what stands in it at the end.

run.json            what the run is: the fingerprints that every worker and checkpoint must agree on
worker-0.json       where a worker serves its health and metrics, and its process id
metrics.jsonl       one line a step and evaluation
checkpoint-120/     to resume from, unless checkpoint_dir is elsewhere
best.json           which of them was the best on the held-out part
initial/, export/   ordinary transformers folders, before and after
result.json         what the run came to
receipt.json        what ran, as proof
smoke/              what a smoke run has left
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from stillhouse.errors import ConfigurationError
from stillhouse.version import __version__
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.journal import RESULT_FILE, Journal, write_whole

RUN_FILE = "run.json"

SMOKE_FOLDER = "smoke"
"""Below output_dir, so that a smoke run is in no real run's way, whether before it or after."""

START_TOGETHER_SECONDS = 120.0
"""Longer than the slowest of several workers takes to load, whose processor the others share."""

POLL_SECONDS = 0.05

_log = structlog.get_logger(__name__)


def own_folder(recipe: Recipe) -> Recipe:
    """Return the recipe of what is to be done now: a smoke run has a folder of its own."""
    if recipe.smoke_steps is None:
        return recipe
    return recipe.model_copy(update={"output_dir": recipe.output_dir / SMOKE_FOLDER})


def check_output_dir(recipe: Recipe) -> None:
    """Refuse a folder that holds a run already, unless it is to go on.

    Workers that meet at a lighthouse share the folder: each may find that another has begun, or resumes after all of
    them were lost, so for them going on is understood.

    Raises:
        ConfigurationError: the folder is taken, or is no folder.
    """
    folder = recipe.output_dir
    if recipe.smoke_steps is not None:
        folder = folder.parent if folder.name == SMOKE_FOLDER else folder
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"output_dir {str(folder)!r} is no folder; name another")
    if recipe.smoke_steps is not None:
        return
    if (folder / RUN_FILE).exists() and not recipe.resume and recipe.lighthouse is None:
        raise ConfigurationError(
            f"output_dir {str(folder)!r} holds a run already; go on with it by --resume, or name another folder"
        )


def has_begun(recipe: Recipe) -> bool:
    """Tell whether the run in the recipe's folder has met its teacher before, in this worker or another."""
    return (recipe.output_dir / RUN_FILE).exists()


def check_same_run(recipe: Recipe, identity: dict[str, str]) -> None:
    """Refuse a folder that holds another run.

    Args:
        recipe: of the run that is to go on.
        identity: what the folder must say of whose it is; or a part of it.

    Raises:
        ConfigurationError: it says another thing, or nothing.
    """
    path = recipe.output_dir / RUN_FILE
    if path.exists():
        _check_same(_read_identity(path), identity, recipe.output_dir, _changed_keys(path, recipe))


def claim(recipe: Recipe, identity: dict[str, str]) -> None:
    """Make the folder, and write into it whose it is.

    Raises:
        ConfigurationError: it is another run's, or cannot be written.
    """
    path = recipe.output_dir / RUN_FILE
    try:
        recipe.output_dir.mkdir(parents=True, exist_ok=True)
        if recipe.smoke_steps is not None:
            return  # nobody goes on with it
        check_same_run(recipe, identity)
        content = {"identity": identity, "version": __version__, "recipe": recipe.result_keys()}
        write_whole(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigurationError(f"output_dir {str(recipe.output_dir)!r} cannot be written: {error}") from error


def _read_identity(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} does not say whose run this is: {error}; remove it to go on with the folder, or name another"
        ) from error


def _changed_keys(path: Path, recipe: Recipe) -> str:
    """Return which keys of the recipe are others than in the run that the folder holds, in words."""
    try:
        earlier = dict(json.loads(path.read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # of an earlier release, which wrote down the hash alone
    now = json.loads(json.dumps(recipe.result_keys()))
    changed = [f"{key} was {earlier.get(key)!r} and is {now[key]!r}" for key in now if earlier.get(key) != now[key]]
    return f" ({'; '.join(changed)})" if changed else ""


def _check_same(theirs: dict[str, str], ours: dict[str, str], folder: Path, changed: str = "") -> None:
    for key, value in ours.items():
        if theirs.get(key) != value:
            also = changed if key == "recipe" else ""
            raise ConfigurationError(
                f"output_dir {str(folder)!r} holds a run whose {key} is {theirs.get(key)}, and not {value}{also}; "
                "give the recipe, data and teacher that it began with, or name another folder"
            )


def announce(recipe: Recipe, address: str, facts: dict[str, Any] | None = None) -> None:
    """Write where this worker serves its health and metrics, that it is ready to train, and on what."""
    content = {"http": address, "pid": os.getpid(), "parent": os.getppid(), "facts": facts}
    write_whole(_worker_file(recipe, recipe.worker_index), json.dumps(content) + "\n")


def worker_facts(recipe: Recipe) -> dict[str, Any]:
    """Return what every worker that has been here says that it trains on, by its number."""
    found = {}
    for path in sorted(recipe.output_dir.glob("worker-*.json")):
        try:
            found[path.stem.removeprefix("worker-")] = json.loads(path.read_text(encoding="utf-8"))["facts"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of an earlier release, or being written
    return {number: facts for number, facts in found.items() if facts}


def warn_of_another_loss(recipe: Recipe, loss: str) -> None:
    """Say so where another kernel computed the loss of a worker that has been here: its bits were not quite these."""
    for number, facts in worker_facts(recipe).items():
        theirs = facts.get("loss", loss)  # not said by an earlier release
        if theirs != loss:
            _log.warning("loss_computed_otherwise", worker=number, theirs=theirs, here=loss, effect="other low bits")


def wait_for_siblings(recipe: Recipe, stopping: threading.Event) -> bool:
    """Wait until all workers of one launcher are ready, so that a run begins with all of them; return whether so.

    Bounded: after `START_TOGETHER_SECONDS` it begins with those that are there, and the others join.
    """
    deadline = time.monotonic() + START_TOGETHER_SECONDS
    # One that was started by itself waits for nobody, whatever its number: its siblings have launchers of their own.
    missing = set(range(recipe.local_workers)) - {recipe.worker_index} if recipe.local_workers > 1 else set()
    while True:
        missing = {index for index in missing if not _is_ready(_worker_file(recipe, index))}
        if not missing or time.monotonic() > deadline or stopping.wait(POLL_SECONDS):
            return not missing


def _worker_file(recipe: Recipe, index: int) -> Path:
    return recipe.output_dir / f"worker-{index}.json"


def _is_ready(path: Path) -> bool:
    """Tell whether a sibling has written its file: one of an earlier launch had another parent."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["parent"] == os.getppid())
    except (OSError, ValueError, KeyError):
        return False


def stopped_for(recipe: Recipe, step: int) -> str | None:
    """Return what a callback stopped this run for after `step` steps, None if none did: such a run is over."""
    try:
        result = json.loads((recipe.output_dir / RESULT_FILE).read_text(encoding="utf-8"))
        is_stopped = result["status"] == "stopped" and result["steps"] == step
        return str(result["reason"]) if is_stopped else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_evaluations(output_dir: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run so far, from before a resume too."""
    return [
        {key: value for key, value in record.items() if key != "event"}
        for record in Journal(output_dir).read()
        if record["event"] == "evaluation"
    ]
