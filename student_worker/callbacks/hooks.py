"""Calls every callback's hooks in order, and says what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from stillhouse.errors import GuardError, StillhouseError
from student_worker.callbacks.base import Callback, RunView, Stop
from student_worker.state import Keeper, WorkerState

_log = structlog.get_logger(__name__)


class Hooks:
    """The callbacks of a run, as the trainer calls them.

    A hook that raises `Stop` leaves its text in `stop`, and the callbacks after it are called all the same: what they
    write must not depend on the order.
    """

    def __init__(self, callbacks: Sequence[Callback], view: RunView) -> None:
        self._callbacks = callbacks
        self.view = view
        self.stop: str | None = None

    def keep_all(self, state: WorkerState) -> None:
        """Let the state keep what callbacks that have `progress` and `restore` want kept, each under its class's name.

        Two of one class are told apart by their order.
        """
        names = [f"{type(callback).__module__}:{type(callback).__qualname__}" for callback in self._callbacks]
        for index, (name, callback) in enumerate(zip(names, self._callbacks, strict=True)):
            if isinstance(callback, Keeper):
                again = names[:index].count(name)
                state.keep(f"{name}#{again}" if again else name, callback)

    def call(self, hook: str, *arguments: Any) -> None:
        """Call one hook of all callbacks.

        Raises:
            GuardError: a hook failed; named are the callback, the hook and the step.
            StillhouseError: what our own callbacks raise, as it is.
        """
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(self.view, *arguments)
            except Stop as stop:
                self.stop = self.stop or str(stop) or f"{type(callback).__name__} has stopped the run"
            except StillhouseError:
                raise
            except Exception as error:
                raise GuardError(
                    f"callback {type(callback).__name__} failed in {hook} after step {self.view.step}: "
                    f"{type(error).__name__}: {error}. Mend it and resume; the steps so far are kept"
                ) from error

    def end(self, status: str) -> None:
        """Call the last hook; one that fails is only logged, lest it costs the export."""
        for callback in self._callbacks:
            try:
                callback.on_train_end(self.view, status)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run is over and whole
                _log.exception("callback_failed", callback=type(callback).__name__, reason=str(error))
