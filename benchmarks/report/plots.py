"""The page's pictures, as SVG: text stays text, and equal results give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks._result import Value
from benchmarks._training.phases import PHASES
from benchmarks.report.numbers import number
from benchmarks.report.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS: Final = "#b5651d"
THEIRS: Final = "#4a6572"
LIMIT: Final = "#a9b3b8"
PHASE_COLOURS: Final = ("#c0392b", "#4a6572", "#b5651d", "#7f98a5", "#6b8e4e", "#8e6bb5", "#d9a441", "#c9ced1")
BAR_INCHES: Final = 0.34


def kernel(results: Results) -> str:
    """Milliseconds of loss and gradient, each contestant's least."""
    rows = results.rows("kd_kernel", setting="dense, T=2, alpha=0.5")

    def draw(axes: Axes) -> None:
        _bars(axes, rows, "contestant", "min_ms")
        axes.set_xlabel("ms, log scale, least of all rounds")
        _log_x(axes)

    return _picture("Loss and gradient of [512, 49152]", _of_bars(len(rows)), [draw])


def step(results: Results) -> str:
    """Where each millisecond of a step goes."""
    rows = [row for row in results.of("training").rows if "forward_ms" in row]

    def draw(axes: Axes) -> None:
        names = [str(row["teacher"]) for row in rows][::-1]
        left = [0.0] * len(rows)
        for phase, colour in zip(PHASES, PHASE_COLOURS, strict=True):
            # A clock's rounding must not push a bar back.
            widths = [max(0.0, float(row[f"{phase}_ms"] or 0.0)) for row in rows][::-1]
            axes.barh(names, widths, left=left, color=colour, label=phase.replace("_", " "))
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_xlabel("ms of the quickest run's mean step")
        axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0), fontsize=9)

    return _picture("", _of_bars(len(rows) + 2), [draw])


def serving(results: Results) -> str:
    """Megabytes and requests a second, medians."""

    def drawn(setting: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            _bars(axes, results.rows("serving", setting=setting), "contestant", "median")
            axes.set_title(f"{setting}, log scale", fontsize=10, loc="left")
            _log_x(axes)

        return draw

    return _picture("", (9.0, 4.2), [drawn("large, MB/s"), drawn("small, requests/s")], columns=2)


COST_CURVES: Final = (
    "loss and gradient",
    "output head",
    "forward, one sequence",
    "requests, a model of 30 ms a batch",
    "remembered answer",
    "step",
)


def cost(results: Results) -> str:
    """What is measured as points, what the model says as a line."""

    def drawn(curve: str) -> Callable[[Axes], None]:
        rows = results.rows("cost", curve=curve)

        def draw(axes: Axes) -> None:
            x = [float(row["x"] or 0.0) for row in rows]
            axes.plot(x, [float(row["measured"] or 0.0) for row in rows], "o", color=OURS, label="measured")
            axes.plot(x, [float(row["predicted"] or 0.0) for row in rows], color=THEIRS, label="model")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(curve, fontsize=9, loc="left")
            axes.set_xlabel(str(rows[0]["x_name"]), fontsize=9)
            axes.set_ylabel(str(rows[0]["unit"]), fontsize=9)
            axes.tick_params(labelsize=8, which="both")
            if curve == COST_CURVES[0]:
                axes.legend(frameon=False, fontsize=8)

        return draw

    return _picture("", (9.0, 5.2), [drawn(curve) for curve in COST_CURVES], columns=3)


def cluster(results: Results) -> str:
    """Tokens a second of 8 teachers and so many students, by encoding, nothing remembered and nine tenths."""
    rows = results.rows("cluster", curve="scenario", teachers=8)
    encodings = list(dict.fromkeys(str(row["encoding"]) for row in rows))

    def drawn(remembered: float) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for encoding, colour in zip(encodings, (OURS, THEIRS, *PHASE_COLOURS[4:]), strict=False):
                points = [row for row in rows if row["encoding"] == encoding and row["remembered"] == remembered]
                x = [float(row["x"] or 0.0) for row in points]
                axes.plot(x, [float(row["measured"] or 0.0) for row in points], "o-", color=colour, label=encoding)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"{remembered:.0%} remembered", fontsize=10, loc="left")
            axes.set_xlabel("students")
            axes.set_ylabel("tokens/s, simulated")
            axes.legend(frameon=False, fontsize=8)

        return draw

    return _picture("", (9.0, 3.4), [drawn(0.0), drawn(0.9)], columns=2)


PLOTS: Final[dict[str, Callable[[Results], str]]] = {
    "kernel": kernel,
    "step": step,
    "serving": serving,
    "cost": cost,
    "cluster": cluster,
}
"""By the name of its file."""


def _bars(axes: Axes, rows: Sequence[dict[str, Value]], name: str, value: str) -> None:
    names = [str(row[name]) for row in rows][::-1]
    values = [float(row[value] or 0.0) for row in rows][::-1]
    axes.barh(names, values, color=[_colour(each) for each in names])
    axes.bar_label(axes.containers[0], [number(each) for each in values], padding=3, fontsize=9)  # type: ignore[arg-type]  # bars, as made above
    axes.margins(x=0.15)


def _log_x(axes: Axes) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _colour(name: str) -> str:
    if name.startswith("stillhouse"):
        return OURS
    return LIMIT if name.startswith(("memory pass", "limit")) else THEIRS


def _of_bars(count: int) -> tuple[float, float]:
    return 7.5, 1.0 + BAR_INCHES * count


def _picture(
    title: str, inches: tuple[float, float], draws: Sequence[Callable[[Any], None]], *, columns: int = 1
) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stillhouse", "font.size": 10}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=inches, layout="constrained")
        for number, draw in enumerate(draws):
            axes = figure.add_subplot(-(-len(draws) // columns), columns, number + 1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x" if columns == 1 else "both", alpha=0.25)
            axes.set_axisbelow(True)
            draw(axes)
        if title:
            figure.suptitle(title, fontsize=11, x=0.02, ha="left")
        out = io.StringIO()
        # On white, whatever the page's own ground: its text is dark.
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
