"""The callbacks that a recipe names: `module:Class`, imported from where Python imports from (PYTHONPATH)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from stillhouse.errors import ConfigurationError
from student_worker.callbacks.base import Callback


def callback_classes(names: Sequence[str]) -> list[type[Callback]]:
    """Return the classes of these names.

    Raises:
        ConfigurationError: one that cannot be imported, or that is no callback; the message names it.
    """
    return [_find(name) for name in names]


def make(name: str) -> Callback:
    """Return a callback, made without arguments.

    Raises:
        ConfigurationError: it cannot be found or made; the message names it.
    """
    try:
        return _find(name)()
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"callbacks: {name!r} cannot be made without arguments: {type(error).__name__}: {error}"
        ) from error


def _find(name: str) -> type[Callback]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"callbacks: {name!r} cannot be imported: {error}; put its folder on PYTHONPATH, or install it"
        ) from error
    except Exception as error:
        raise ConfigurationError(f"callbacks: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Callback)):
        said = "does not exist" if found is None else "is no subclass of student_worker.callbacks.Callback"
        raise ConfigurationError(f"callbacks: {name!r} {said}")
    return found
