"""Numbers -> pictures, as SVG in the page's own text: no script draws them, and they are readable without one.

Colours are classes of the stylesheet, so that they follow the reader's light or dark. Knows nothing of what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 460, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 24
_MOST_POINTS = 400


def sparkline(values: Sequence[float], label: str) -> Markup:
    """Return a small line of the last values, for a tile; `label` is read out in its place."""
    highest = max([*values, 1e-9])
    step = 100 / max(1, len(values) - 1)
    path = " ".join(f"{i * step:.1f},{27 - 24 * value / highest:.1f}" for i, value in enumerate(values))
    return Markup(
        '<svg class="spark" viewBox="0 0 100 28" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<polygon class="area" points="0,28 {} 100,28"/><polyline class="line" points="{}"/></svg>'
    ).format(label, path, path)


def bar(share: float, kind: str = "plain") -> Markup:
    """Return one bar of a list, `share` of the width; beside it stands its number, so it is silent."""
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        '<svg class="bar {}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="fill" width="{:.2f}" height="8"/></svg>'
    ).format(kind, width)


def stack(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """Return one bar of several parts: (class, amount)."""
    total = sum(amount for _, amount in parts) or 1.0
    starts = accumulate([0.0, *(100 * amount / total for _, amount in parts)])
    cells = Markup("").join(
        Markup('<rect class="{}" x="{:.3f}" width="{:.3f}" height="12"/>').format(name, start, 100 * amount / total)
        for (name, amount), start in zip(parts, starts, strict=False)
    )
    return Markup(
        '<svg class="stack" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(label, cells)


def lines(
    series: Sequence[tuple[str, str, Points]],
    label: str,
    *,
    x_label: str = "",
    dots: Sequence[str] = (),
    steps: bool = False,
    from_zero: bool = False,
    x_range: tuple[float, float] | None = None,
) -> Markup:
    """Return a chart of several lines: (class, name, points); those of class in `dots` have a dot at each point.

    `x_range` is by default that of the points. Where nothing is there to draw, it says so.
    """
    drawn = [(kind, name, _thinned([p for p in points if math.isfinite(p[1])])) for kind, name, points in series]
    drawn = [one for one in drawn if one[2]]
    if not drawn:
        return Markup('<p class="none">Nothing yet.</p>')
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = [y for _, _, points in drawn for _, y in points]
    x_axis, y_axis = (
        _Axis(*(x_range or (min(xs), max(xs)))),
        _Axis(0.0 if from_zero else min(ys), max(ys), is_padded=True),
    )
    parts = [_grid(x_axis, y_axis, x_label)]
    for kind, _, points in drawn:
        places = [(_x(x_axis.share(x)), _y(y_axis.share(y))) for x, y in points]
        parts.append(_line(kind, _stairs(places) if steps else places))
        if kind in dots or len(places) == 1:
            circle = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.2"/>')
            parts += [circle.format(kind, x, y) for x, y in places]
    legend = Markup("").join(
        Markup('<li><span class="key {}"></span>{} <b>{}</b></li>').format(kind, name, _short(points[-1][1]))
        for kind, name, points in drawn
    )
    return Markup(
        '<figure class="chart"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        '<ul class="legend">{}</ul></figure>'
    ).format(_WIDTH, _HEIGHT, label, Markup("").join(parts), legend)


class _Axis:
    """The numbers of one side of a chart."""

    def __init__(self, lowest: float, highest: float, *, is_padded: bool = False) -> None:
        room = (highest - lowest) * 0.05 if is_padded else 0.0
        if highest == lowest:
            room = abs(highest) * 0.1 or 1.0
        self.lowest = lowest if lowest == 0 else lowest - room
        self.highest = highest + room

    def share(self, value: float) -> float:
        """Return where a value stands, from 0 to 1."""
        return (value - self.lowest) / (self.highest - self.lowest)

    def ticks(self, count: int) -> list[float]:
        """Return a few round numbers."""
        rough = (self.highest - self.lowest) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first = math.ceil(self.lowest / step)
        return [index * step for index in range(first, math.floor(self.highest / step) + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str) -> Markup:
    parts = []
    for value in y_axis.ticks(4):
        y = _y(y_axis.share(value))
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 6, y + 4, _short(value))
        )
    for value in x_axis.ticks(5):
        x = _x(x_axis.share(value))
        anchor = "end" if x > _WIDTH - _RIGHT - 20 else "middle"
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}{}</text>').format(
                x, _HEIGHT - _BOTTOM + 17, anchor, _short(value), x_label
            )
        )
    return Markup("").join(parts)


def _line(kind: str, places: Points) -> Markup:
    return Markup('<polyline class="line {}" points="{}"/>').format(
        kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    )


def _stairs(places: Points) -> list[tuple[float, float]]:
    """Return the corners of a line that stays where it is until it changes."""
    corners = list(places[:1])
    for (_, before), (x, y) in pairwise(places):
        corners += [(x, before), (x, y)]
    return corners


def _thinned(points: Points) -> Points:
    """Return at most so many points as a screen shows; the last is always there."""
    if len(points) <= _MOST_POINTS:
        return points
    every = -(-len(points) // _MOST_POINTS)
    return points[::-every][::-1]


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _short(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
