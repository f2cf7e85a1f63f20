"""The performance page: made of the results and of nothing else, each goal held against its figure."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app, questions
from benchmarks._result import Result, machine
from benchmarks.report.goals import HEADLINES, Headline
from benchmarks.report.numbers import number
from benchmarks.report.page import DOCS, render, write_page
from benchmarks.report.results import FOLDER, PEERS, MissingResultError, Results, save

runner = CliRunner()
has_results = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="NOT TESTED: the page is written by hand; `make bench` has not written its results yet"
)


@has_results
def test_the_page_and_its_pictures_are_what_the_results_make(tmp_path: Path) -> None:
    write_page(Results(), tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) > 2
    for path in made:
        assert (DOCS / path).read_text() == (tmp_path / path).read_text(), f"{path}: run `python -m benchmarks page`"


@has_results
def test_every_picture_is_on_the_page_and_every_headline_has_a_benchmark() -> None:
    text = render(Results())
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text))
    assert shown == {str(path.relative_to(DOCS)) for path in (DOCS / "images/performance").iterdir()}
    assert {headline.benchmark for headline in HEADLINES} <= set(questions())


def test_a_result_in_which_peers_took_part_goes_before_one_without(tmp_path: Path) -> None:
    ours = Result("kd_kernel", 1, [{"contestant": "ours"}], {"speedup": 1.0})
    save(ours, tmp_path)
    assert Results(tmp_path).of("kd_kernel") == ours
    with_peers = replace(ours, rows=[{"contestant": "ours"}, {"contestant": "theirs"}])
    save(with_peers, tmp_path / PEERS)
    assert Results(tmp_path).of("kd_kernel") == with_peers


def test_a_benchmark_that_was_not_run_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingResultError, match=r"has no kd_kernel\.json: run `make bench`"):
        render(Results(tmp_path))


def test_rows_that_are_not_there_are_an_error_and_not_an_empty_table(tmp_path: Path) -> None:
    save(Result("store", 1, [{"encoding": "top-64"}], {}), tmp_path)
    with pytest.raises(MissingResultError, match="store has no row where"):
        Results(tmp_path).rows("store", encoding="top-65")


@pytest.mark.parametrize(
    ("headline", "value", "is_met"),
    [
        (Headline("a", "f", "", "", "at least", 2), 2.0, True),
        (Headline("a", "f", "", "", "at least", 2), 1.99, False),
        (Headline("a", "f", "", "", "at most", 2), 2.01, False),
        (Headline("a", "f", "", ""), 7.0, None),
    ],
)
def test_a_goal_is_met_or_not_or_there_is_none(headline: Headline, value: float, is_met: bool | None) -> None:
    assert headline.is_met(value) is is_met


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.96951, "0.97"),
        (49152, "49,152"),
        (196608.4, "196,608"),
        (0.000123, "0.000123"),
        (21.04, "21"),
        ("top-64", "top-64"),
        (None, ""),
    ],
)
def test_numbers_have_three_figures_or_all_of_their_whole_ones(value: str | float | None, text: str) -> None:
    assert number(value) == text


def test_a_quick_run_is_kept_out_of_the_page(tmp_path: Path) -> None:
    result = runner.invoke(app, ["run", "kd_chunk", "--quick", "--results", str(tmp_path)])
    assert result.exit_code == 2
    assert "--quick measures nothing" in result.output
    assert not list(tmp_path.iterdir())


def test_what_says_where_a_result_was_made_is_in_the_result() -> None:
    assert {"cpu", "cores", "threads", "torch"} <= machine().keys()
