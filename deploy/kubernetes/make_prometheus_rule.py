"""Writes components/monitoring/prometheus-rule.yaml from ../prometheus/rules, when it is run.

The Prometheus operator takes the same rules in a resource of its own.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
TARGET = HERE / "components" / "monitoring" / "prometheus-rule.yaml"

HEADING = "# Made from deploy/prometheus/rules by make_prometheus_rule.py: change them there.\n"


def text() -> str:
    """Return the file's content."""
    files = sorted(RULES.glob("*.yml"), reverse=True)  # what is recorded stands before what asks for it
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stillhouse", "labels": {"app.kubernetes.io/part-of": "stillhouse"}},
        "spec": {"groups": groups},
    }
    return HEADING + yaml.safe_dump(resource, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
