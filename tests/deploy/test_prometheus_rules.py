"""The rules and the scrape configuration, by Prometheus' own tool; and that alerts, metrics and pages agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
TESTS = FOLDER / "tests" / "alerts_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "stillhouse.json"
PAGE = ROOT / "docs" / "operations.md"

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="NOT TESTED: promtool is not installed")

OF_A_SUPERVISOR = {"stillhouse_ended_code"}


def run(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> dict[str, dict[str, object]]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def recorded() -> set[str]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def served() -> set[str]:
    """The name of every series that a teacher or a worker can show."""
    from student_worker.metrics import WorkerMetrics
    from teacher_service.metrics import Metrics

    names: set[str] = set()
    for registry in (Metrics().registry, WorkerMetrics().registry):
        for family in registry.collect():
            names |= {sample.name for sample in family.samples} | {family.name}
            if family.type == "counter":
                names.add(f"{family.name}_total")
            if family.type == "histogram":
                names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    # Of devices that this machine may not have.
    return names | {"teacher_device_memory_bytes", "student_device_memory_bytes"}


@promtool
def test_rules_and_configuration_are_sound() -> None:
    run("check", "rules", *map(str, RULES))
    run("check", "config", "--syntax-only", str(FOLDER / "prometheus.yml"))


@promtool
def test_the_rules_do_what_their_tests_say() -> None:
    run("test", "rules", str(TESTS))


def test_every_alert_is_tested_explained_and_says_where() -> None:
    tested = TESTS.read_text(encoding="utf-8")
    headings = re.findall(r"^### (\w+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings == list(alerts())
    for name, rule in alerts().items():
        assert re.search(rf'"{name}"|alertname: {name}\n', tested), name
        notes, labels = rule["annotations"], rule["labels"]
        assert isinstance(notes, dict)
        assert isinstance(labels, dict)
        assert notes["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert labels["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= notes.keys()


def test_rules_and_dashboard_ask_for_what_is_served() -> None:
    known = served() | recorded() | OF_A_SUPERVISOR
    texts = [file.read_text(encoding="utf-8") for file in RULES]
    texts += [target["expr"] for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
              for target in panel.get("targets", [])]  # fmt: skip
    asked = {name for text in texts for name in re.findall(r"\b(?:\w+:)?(?:teacher|student|stillhouse)_[\w:]*\w", text)}
    asked = {name.removesuffix(":") for name in asked if not name.startswith("stillhouse_student")}
    assert {name for name in asked if name not in known} == set()
    assert len(asked) > 30


def test_the_dashboard_is_what_its_program_writes() -> None:
    from deploy.grafana.make_dashboard import text

    assert DASHBOARD.read_text(encoding="utf-8") == text(), "stale: run `python deploy/grafana/make_dashboard.py`"
