"""Listens to `transformers` while it loads weights, whose progress bar a service does not show.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_BAR = "Loading weights"

OnProgress = Callable[[int, int], None]
"""Told how many tensors of how many have been read."""


@contextmanager
def counting_weights(on_progress: OnProgress | None) -> Iterator[None]:
    """Tell how loading goes on. For a whole process, while it lasts; early releases of `transformers` tell nothing."""
    from transformers.utils import logging

    set_hook: Any = getattr(logging, "set_tqdm_hook", None)
    if on_progress is None or set_hook is None:
        yield
        return

    def make_bar(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bar = factory(*arguments, **options)
        if options.get("desc") != _BAR or not arguments:
            return bar
        return _counted(bar, len(arguments[0]), on_progress)

    previous = set_hook(make_bar)
    try:
        yield
    finally:
        set_hook(previous)


def _counted(items: Any, total: int, on_progress: OnProgress) -> Iterator[Any]:
    for number, item in enumerate(items):
        on_progress(number, total)
        yield item
    on_progress(total, total)
