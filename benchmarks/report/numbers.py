"""How numbers are written on the page and in its pictures."""

from __future__ import annotations

from benchmarks._result import Value


def number(value: Value) -> str:
    """Return a number in three figures, or all of its whole ones, with commas; a text as it is."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):f}".rstrip("0").rstrip(".") if "e" in text else text
