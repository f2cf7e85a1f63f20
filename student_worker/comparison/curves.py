"""Draws a comparison: each held-out figure against steps, and against seconds of training, one line an arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.demo.curves import COPPER, MOSS, SLATE, picture
from student_worker.comparison.table import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (SLATE, COPPER, MOSS, "#8f3f71", "#3b7dd8", "#c9a227", "#555555", "#2a9d8f")

PICTURES = {
    "cross_entropy": ("Held-out cross-entropy", "nats"),
    "perplexity": ("Held-out perplexity", "log scale"),
    "kl": ("Held-out KL to the teacher", "nats"),
    "agreement": ("Same first choice as the teacher, held-out", "share of positions"),
}


def draw_curves(outcome: dict[str, Any]) -> dict[str, str]:
    """Return SVG text by the figure that it shows; of several seeds each is a line of the arm's colour."""
    return {name: _draw(outcome, name, *words) for name, words in PICTURES.items()}


def _draw(outcome: dict[str, Any], figure: str, title: str, unit: str) -> str:
    names = list(dict.fromkeys(arm["name"] for arm in outcome["arms"]))

    def draw(by_step: Axes, by_second: Axes) -> None:
        seen: set[str] = set()
        for arm in outcome["arms"]:
            points = [point for point in arm["curve"] if point.get(figure) is not None]
            colour = COLOURS[names.index(arm["name"]) % len(COLOURS)]
            label = None if arm["name"] in seen else NAMES.get(arm["name"], arm["name"])
            seen.add(arm["name"])
            for axes, along in ((by_step, "step"), (by_second, "seconds")):
                xs, ys = [point[along] for point in points], [point[figure] for point in points]
                axes.plot(xs, ys, "o-", markersize=3, linewidth=1.4, color=colour, label=label)
        by_step.set_xlabel("step")
        by_second.set_xlabel("seconds of training")
        if figure == "perplexity":
            by_step.set_yscale("log")
            by_second.set_yscale("log")
        by_second.legend(frameon=False)

    return picture(draw, title, unit, panels=2)
