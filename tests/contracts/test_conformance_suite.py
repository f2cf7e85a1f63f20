"""The suite that backends are held to finds each fault that it is there for, and passes the example of the docs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import ConfigurationError
from stillhouse.request import Last, Sequence
from teacher_service.backends import HiddenRows, TeacherBackend, open_backend
from teacher_service.backends.conformance import BackendConformance
from teacher_service.settings import TeacherSettings

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def _example() -> dict[str, Any]:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    exec("\n".join(blocks), namespace)  # noqa: S102 - our own page
    return namespace


EXAMPLE = _example()
Mean: Any = EXAMPLE["MeanBackend"]
ExampleSuite: Any = EXAMPLE["TestMeanBackend"]
SUITE = [name for name in dir(BackendConformance) if name.startswith("test_")]


class TestTheExample(ExampleSuite):  # type: ignore[misc]  # made from the page's text
    pass


class TestTheExampleInDeterministicMode(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        backend: TeacherBackend = Mean(TeacherSettings(backend="mean", mode="deterministic"))
        return backend


class _Altered(Mean):  # type: ignore[misc]  # made from the page's text
    """The example with one fault."""

    def __init__(self) -> None:
        super().__init__(TeacherSettings(backend="mean", mode="deterministic"))


class _DescribesNothing(_Altered):
    def describe(self) -> Any:
        return replace(super().describe(), device_kind="")


class _TokensWithoutFingerprint(_Altered):
    def describe(self) -> Any:
        return replace(super().describe(), tokens=("a", "b"))


class _AnswersEveryPosition(_Altered):
    def _states(self, sequence: Sequence) -> Any:
        return self._embedding[list(sequence.token_ids)]


class _NotANumber(_Altered):
    def head(self, hidden_rows: Tensor) -> Any:
        return super().head(hidden_rows) / 0 * 0


class _FirstForLast(_Altered):
    def _states(self, sequence: Sequence) -> Any:
        first = isinstance(sequence.positions, Last)
        whole: Tensor = super()._states(sequence)
        return self._embedding[[sequence.token_ids[0]]] if first else whole


class _SortsByLength(_Altered):
    def forward(self, sequences: Any) -> Any:
        return HiddenRows(super().forward(sorted(sequences, key=lambda s: len(s.token_ids))).rows, 0)


class _AddsTheBatch(_Altered):
    def forward(self, sequences: Any) -> Any:
        return HiddenRows(tuple(rows + len(sequences) for rows in super().forward(sequences).rows), 0)


class _IgnoresSegments(_Altered):
    def _states(self, sequence: Sequence) -> Any:
        return super()._states(replace(sequence, segment_lengths=()))


class _CentresItsRows(_Altered):
    def head(self, hidden_rows: Tensor) -> Any:
        return super().head(hidden_rows - hidden_rows.mean(0))


class _OneBuffer(_Altered):
    def forward(self, sequences: Any) -> Any:
        if not hasattr(self, "buffer"):
            self.buffer = torch.zeros(8, 2048, 16)
        given = super().forward(sequences).rows
        for place, rows in zip(self.buffer, given, strict=False):
            place[: len(rows)] = rows
        return HiddenRows(tuple(place[: len(rows)] for place, rows in zip(self.buffer, given, strict=False)), 0)


class _ScalesInPlace(_Altered):
    def head(self, hidden_rows: Tensor) -> Any:
        return super().head(hidden_rows.mul_(2))


class _NegativePadding(_Altered):
    def forward(self, sequences: Any) -> Any:
        return replace(super().forward(sequences), padding_tokens=-1)


class _ForgetsItsScale(_Altered):
    def output_head(self) -> Any:
        return replace(super().output_head(), scale=0.5)


class _OfOneThread(_Altered):
    def __init__(self) -> None:
        super().__init__()
        import threading

        self._local = threading.local()
        self._local.offset = 0.0

    def head(self, hidden_rows: Tensor) -> Any:
        return super().head(hidden_rows) + getattr(self._local, "offset", 1.0)


class _ShorterThanItSays(_Altered):
    def _states(self, sequence: Sequence) -> Any:
        states: Tensor = super()._states(sequence)
        return states / (len(sequence.token_ids) < 512)


class _ALittleNoise(_Altered):
    def forward(self, sequences: Any) -> Any:
        return HiddenRows(tuple(rows * (1 + 1e-6 * len(sequences)) for rows in super().forward(sequences).rows), 0)


class _CheaperInCompany(_Altered):
    def padded_tokens(self, lengths: Any) -> int:
        return int(sum(lengths) / len(lengths))


FAULTS: dict[str, Callable[[], TeacherBackend]] = {
    "test_its_description_names_all_that_an_answer_depends_on": _DescribesNothing,
    "test_its_tokens_have_a_fingerprint": _TokensWithoutFingerprint,
    "test_there_is_one_row_for_each_position_asked_for": _AnswersEveryPosition,
    "test_its_head_gives_finite_logits_of_the_whole_vocabulary": _NotANumber,
    "test_the_positions_asked_for_are_those_answered": _FirstForLast,
    "test_answers_come_in_the_order_of_the_sequences": _SortsByLength,
    "test_neighbours_and_padding_hardly_change_an_answer": _AddsTheBatch,
    "test_a_segment_is_answered_as_if_it_stood_alone": _IgnoresSegments,
    "test_its_head_gives_the_same_in_chunks": _CentresItsRows,
    "test_rows_stay_as_they_were_when_another_batch_runs": _OneBuffer,
    "test_its_head_leaves_the_rows_alone": _ScalesInPlace,
    "test_padding_is_counted": _NegativePadding,
    "test_a_batch_costs_no_less_for_a_sequence_more": _CheaperInCompany,
    "test_hidden_states_are_offered_with_the_head_that_explains_them": _ForgetsItsScale,
    "test_it_may_be_asked_from_another_thread": _OfOneThread,
    "test_the_longest_sequence_is_answered": _ShorterThanItSays,
    "test_in_deterministic_mode_not_one_bit_depends_on_the_batch": _ALittleNoise,
}


def test_there_is_a_fault_for_every_promise() -> None:
    assert sorted(FAULTS) == SUITE


@pytest.mark.parametrize("name", SUITE)
def test_the_suite_finds_a_faulty_backend(name: str) -> None:
    class Suite(BackendConformance):
        def make_backend(self) -> TeacherBackend:
            return FAULTS[name]()

    with pytest.raises(AssertionError):
        getattr(Suite(), name)()


def test_an_installed_backend_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "mean_backend.py").write_text(blocks[0], encoding="utf-8")
    distribution = tmp_path / "mean_backend-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-backend\nVersion: 1\n", encoding="utf-8")
    (tmp_path / "unreadable_backend.py").write_text("raise RuntimeError('no engine on this machine')", encoding="utf-8")
    points = """[stillhouse.backends]
mean = mean_backend:MeanBackend
broken = mean_backend:Missing
unreadable = unreadable_backend:Engine
module = mean_backend
odd = builtins:str
"""
    (distribution / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_backend(TeacherSettings(backend="mean")).describe().model == "mean"
    with pytest.raises(ConfigurationError, match=r"'broken' .* cannot be imported"):
        open_backend(TeacherSettings(backend="broken"))
    with pytest.raises(ConfigurationError, match=r"'unreadable' .* cannot be imported: no engine on this machine"):
        open_backend(TeacherSettings(backend="unreadable"))
    with pytest.raises(ConfigurationError, match=r"'module' \(mean_backend\) names a module, which cannot be called"):
        open_backend(TeacherSettings(backend="module"))
    with pytest.raises(ConfigurationError, match="opened a str, which is no TeacherBackend"):
        open_backend(TeacherSettings(backend="odd"))
    with pytest.raises(
        ConfigurationError, match=r"'nobody' is not installed; there are: .*fixture, mean, .*transformers"
    ):
        open_backend(TeacherSettings(backend="nobody"))
