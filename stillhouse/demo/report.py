"""What the demonstration found: `report.json` for scripts, `report.html` (one file, nothing to fetch) for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Continuation:
    """One prompt and what each model makes of it."""

    prompt: str
    teacher: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one demonstration.

    KL in nats, on the held-out part at T = 1 over the whole vocabulary; agreement as a share of positions; times in
    seconds; memory as the largest sum over all processes, shared pages counted once, in GiB.
    """

    teacher: str
    student: str
    student_parameters: int
    teacher_parameters: int
    dropped_layers: tuple[int, ...]
    workers: int
    steps: int
    tokens_per_step: int
    encoding: str
    temperature: float
    alpha: float
    kl_before: float
    kl_after: float
    agreement_before: float
    agreement_after: float
    perplexity_before: float
    perplexity_after: float
    perplexity_teacher: float
    teacher_forward_tokens: int
    cache_hit_ratio_second_pass: float
    teacher_forward_tokens_second_pass: int
    training_tokens_per_second: float
    peak_memory_gib: float
    export_dir: str
    seconds: float
    continuations: tuple[Continuation, ...]


def write_report(report: Report, curves: Sequence[str], folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`; return the page's path."""
    import jinja2

    figures = asdict(report)
    (folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    numbers = [(name, value) for name, value in figures.items() if isinstance(value, int | float | str)]
    template = resources.files("stillhouse.demo").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = folder / "report.html"
    page.write_text(
        environment.from_string(template).render(report=report, curves=curves, numbers=numbers), encoding="utf-8"
    )
    return page
