"""A run's figures on Weights & Biases: one run per training, whatever its resumes and first workers.

`WANDB_*` says where and how (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_ID, WANDB_DIR, ...); what
it leaves open is chosen here. The run's id, and the last step that was logged, stand in OUTPUT_DIR/wandb.json.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ConfigurationError
from student_worker.cadence import Cadence
from student_worker.callbacks.base import RunView
from student_worker.callbacks.tracker import Figures, Line, Tracker
from student_worker.run_folder.journal import write_whole

if TYPE_CHECKING:
    from wandb import Run

ID_FILE = "wandb.json"
DEFAULT_PROJECT = "stillhouse"
OPEN_SECONDS = 60.0
"""How long W&B may take to answer when a run is opened; the run trains meanwhile."""


class ToWandb(Tracker):
    """Logs to one run, which it opens again by its id."""

    def __init__(self, cadence: Cadence, recent: Callable[[], Sequence[Line]]) -> None:
        super().__init__("wandb", cadence, recent)
        self._run: Run | None = None
        self._id = ""
        self._skip_to: int | None = None
        self._memory = Path(ID_FILE)

    def open(self, run: RunView, step: int) -> bool:
        """Open the run, or go on with it; W&B keeps what it has of these steps already."""
        del step
        import wandb

        is_online = os.environ.get("WANDB_MODE", "online") == "online"
        if is_online and not wandb.login(prompt=False):
            raise ConfigurationError("no API key: run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline")
        self._memory = run.output_dir / ID_FILE
        self._id, logged = remembered(self._memory)
        # Online the service knows what it has; offline a step that is done again would stand there twice.
        self._skip_to = None if is_online else logged
        open_choices = {
            "WANDB_PROJECT": {"project": DEFAULT_PROJECT},
            "WANDB_NAME": {"name": run.name},
            "WANDB_DIR": {"dir": str(run.output_dir)},
            "WANDB_RESUME": {"resume": "allow"},
        }
        chosen: dict[str, Any] = {"id": self._id}
        for variable, choice in open_choices.items():
            chosen |= {} if variable in os.environ else choice
        self._run = wandb.init(
            **chosen,
            config={"recipe": dict(run.recipe), "identity": dict(run.identity)},
            settings=wandb.Settings(init_timeout=OPEN_SECONDS, silent=True, console="off"),
        )
        return is_online

    def write(self, step: int, figures: Figures) -> None:
        """Log figures of a step."""
        assert self._run is not None  # noqa: S101 - `open` comes first
        if self._skip_to is None or step > self._skip_to:
            self._run.log(dict(figures), step=step)
            write_whole(self._memory, json.dumps({"id": self._id, "step": step}) + "\n")

    def close(self, status: str | None) -> None:
        """Finish the run: as failed if it has failed."""
        if self._run is not None:
            if status is not None:
                self._run.summary["status"] = status
            self._run.finish(exit_code=1 if status == "failed" else 0)
            self._run = None


def remembered(path: Path) -> tuple[str, int | None]:
    """Return the run's id on W&B (WANDB_RUN_ID, else the folder's, else a new one), and the last step logged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known, step = str(content["id"]), content.get("step")
    except (OSError, ValueError, KeyError, TypeError):
        known, step = secrets.token_hex(4), None
    chosen = os.environ.get("WANDB_RUN_ID") or known
    if chosen != known:
        step = None
    write_whole(path, json.dumps({"id": chosen, "step": step}) + "\n")
    return chosen, step
