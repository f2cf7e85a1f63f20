"""Templates -> HTML: a service's own beside those that both share. Every value is escaped."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from stillhouse.pages.charts import bar, lines, sparkline, stack
from stillhouse.version import version_text

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_MANY = 1e4
_LINE_ENDS = re.compile(r"\s*\n\s*")


class Pages:
    """The templates of one service.

    Args:
        package: whose folder `templates` holds them.
        service: `teacher` or `student`, as people read it in the head of the page.
    """

    def __init__(self, package: str, service: str) -> None:
        loader = ChoiceLoader([PackageLoader(package), PackageLoader("stillhouse.pages")])
        self._environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        filters: dict[str, Callable[..., Any]] = {
            "number": number, "size": size, "seconds": duration, "percent": percent, "ago": ago, "visible": visible,
            "in_line": in_line,
            "shown_part": _shown_part, "read_part": _read_part,
        }  # fmt: skip
        self._environment.filters |= filters
        self._environment.globals |= {
            "bar": bar, "lines": lines, "sparkline": sparkline, "stack": stack,
            "service": service, "version": version_text(),
        }  # fmt: skip

    def render(self, template: str, **values: Any) -> str:
        """Return a page, or a part of one."""
        return self._environment.get_template(template).render(**values)


def number(value: float | None, digits: int = 1) -> str:
    """Return a number as people read it: 1,234, 12.3k, 4.56M; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= _MANY:
        for unit, letter in _UNITS:
            if abs(value) >= unit:
                return f"{value / unit:.{digits}f}{letter}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:,.{digits}f}"


def size(value: float | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return "–"
    for unit, letter in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= unit:
            return f"{value / unit:.1f} {letter}"
    return f"{value:.0f} B"


def duration(value: float | None) -> str:
    """Return a time: 3.2 ms, 1.25 s, 2 min, 5 h."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.3g} ms" if value >= 1e-6 else "0 ms"
    if value < 60:
        return f"{value:.3g} s"
    minutes, hours = value / 60, value / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"


def percent(value: float | None) -> str:
    """Return a share: 12%, 0.3%, 0%."""
    if value is None:
        return "–"
    return f"{value:.0%}" if value >= 0.0995 or value == 0 else f"{value:.1%}" if value >= 0.0005 else "<0.1%"


def ago(when: float | None) -> str:
    """Return how long ago a time since the epoch was."""
    return "never" if when is None else f"{duration(max(0.0, float(round(time.time() - when))))} ago"


def _shown_part(part: tuple[str, str, float, float]) -> tuple[str, float]:
    """Return what a stack draws of a part: its colour and its amount."""
    return part[0], part[2]


def _read_part(part: tuple[str, str, float, float]) -> str:
    """Return what is read out of it."""
    return f"{part[1]} {percent(part[3])}"


def in_line(text: str) -> str:
    """Return a text without its line ends, which a model may give by the dozen: a sign stands where there are some."""
    return _LINE_ENDS.sub(" ↵ ", text)


def visible(text: str | None) -> str:
    """Return a token's text with what cannot be seen made visible."""
    if text is None:
        return "∅"
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"
