"""The report is one file that needs nothing else, and says what was measured."""

import json
import re
from pathlib import Path

from stillhouse.demo.curves import agreement_curve, cache_bars, loss_curve, time_curve
from stillhouse.demo.report import Continuation, Report, write_report

STEPS = [{"step": s, "kl": 4.0 / s, "step_seconds": 2.0, "teacher_wait_seconds": 0.5} for s in range(1, 6)]
EVALUATIONS = [{"step": 0, "kl": 5.0, "agreement": 0.01}, {"step": 5, "kl": 1.0, "agreement": 0.5}]
REPORT = Report(
    teacher="a teacher",
    student="a student",
    student_parameters=99_000_000,
    teacher_parameters=135_000_000,
    dropped_layers=(10, 12),
    workers=2,
    steps=5,
    tokens_per_step=512,
    encoding="top_k:256",
    temperature=1.0,
    alpha=0.0,
    kl_before=5.0,
    kl_after=1.0,
    agreement_before=0.01,
    agreement_after=0.5,
    perplexity_before=300_000.0,
    perplexity_after=50.0,
    perplexity_teacher=30.0,
    teacher_forward_tokens=2560,
    cache_hit_ratio_second_pass=1.0,
    teacher_forward_tokens_second_pass=0,
    training_tokens_per_second=150.0,
    peak_memory_gib=5.0,
    export_dir="runs/demo/first/export",
    seconds=300.0,
    continuations=(Continuation("a <prompt>", "one", "<script>alert(1)</script>", "three"),),
)


def curves() -> list[str]:
    return [
        loss_curve(STEPS, EVALUATIONS),
        agreement_curve(EVALUATIONS),
        time_curve(STEPS),
        cache_bars((40.0, 0.0), (0.0, 10.0)),
    ]


def test_the_page_needs_nothing_else_and_escapes_what_models_say(tmp_path: Path) -> None:
    page = write_report(REPORT, curves(), tmp_path).read_text()
    assert page.count("<svg") == 4
    assert "<script>alert" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page.replace("xlink:href", "href"))


def test_the_json_holds_every_figure(tmp_path: Path) -> None:
    write_report(REPORT, curves(), tmp_path)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["kl_before"] == 5.0
    assert figures["continuations"][0]["after"] == "three"


def test_equal_runs_give_equal_pictures() -> None:
    assert curves() == curves()
