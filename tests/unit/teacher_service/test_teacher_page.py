"""The page about the teacher names everything that can be set and everything that is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings

PAGE = (Path(__file__).parents[3] / "docs" / "teacher.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TeacherSettings.model_fields)
def test_every_setting_stands_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("metric", list(Metrics().registry.collect()), ids=lambda metric: metric.name)
def test_every_metric_stands_on_the_page(metric: object) -> None:
    name, kind = getattr(metric, "name", ""), getattr(metric, "type", "")
    assert f"`{name}{'_total' if kind == 'counter' else ''}" in PAGE
