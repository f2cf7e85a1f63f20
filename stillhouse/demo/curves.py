"""Draws the curves of a run as SVG text, to be put into a page that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

COPPER = "#b5651d"
SLATE = "#4a6572"
MOSS = "#6b8e4e"


def picture(draw: Callable[..., None], title: str, ylabel: str, *, panels: int = 1) -> str:
    """Return a picture as SVG text: `draw` is handed the axes, as many as there are panels side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text (small, searchable, read aloud), and equal runs give equal pictures.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "stillhouse", "font.size": 10})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 if panels == 1 else 4.6 * panels, 3.2), layout="constrained")
    drawn = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    drawn[0].set_title(title, fontsize=11, loc="left")
    drawn[0].set_ylabel(ylabel)
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    draw(*drawn)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def loss_curve(steps: Sequence[Record], evaluations: Sequence[Record]) -> str:
    """Training KL by step as a line, held-out KL as points. Nats."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    def draw(axes: Axes) -> None:
        axes.plot([r["step"] for r in steps], [r["kl"] for r in steps], color=COPPER, label="training, top-k bound")
        axes.plot([r["step"] for r in evaluations], [r["kl"] for r in evaluations], "o", color=SLATE, label="held-out")
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False)

    return picture(draw, "KL divergence to the teacher", "nats, log scale")


def agreement_curve(evaluations: Sequence[Record]) -> str:
    """Share of held-out positions where student and teacher choose the same token, by step."""

    def draw(axes: Axes) -> None:
        axes.plot([r["step"] for r in evaluations], [r["agreement"] for r in evaluations], "o-", color=MOSS)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1)

    return picture(draw, "Same first choice as the teacher, held-out", "share of positions")


def time_curve(steps: Sequence[Record]) -> str:
    """Where each step's time went: waiting for the teacher, and the rest. Seconds."""

    def draw(axes: Axes) -> None:
        x = [r["step"] for r in steps]
        waits = [r["teacher_wait_seconds"] for r in steps]
        rest = [max(r["step_seconds"] - r["teacher_wait_seconds"], 0.0) for r in steps]
        axes.stackplot(x, rest, waits, labels=["student", "waiting for the teacher"], colors=[MOSS, COPPER], alpha=0.8)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)

    return picture(draw, "Where a step's time goes", "seconds")


def cache_bars(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Sequences answered by the model and by the cache in each pass; each pair is (misses, hits)."""

    def draw(axes: Axes) -> None:
        names = ["second pass", "first pass"]
        computed, cached = [second[0], first[0]], [second[1], first[1]]
        axes.barh(names, computed, color=COPPER, label="computed by the teacher")
        axes.barh(names, cached, left=computed, color=SLATE, label="answered by the cache")
        axes.set_xlabel("sequences")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return picture(draw, "", "")
