"""Writes dashboards/stillhouse.json: `python deploy/grafana/make_dashboard.py`. The panels stand here, as code.

Each is a title, a unit, a hint, and queries with what their lines are called. Rows are read from the top: is it
working, and if not, which part?
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "stillhouse.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS = 24

Query = tuple[str, str]

Panel = tuple[str, str, str, list[Query]]

AT_A_GLANCE: list[Panel] = [
    ("Teachers ready", "short", "Of those that answer.", [("sum(teacher_ready)", "")]),
    ("Workers in the step", "short", "Who took part in the last one.", [("max(student_world_size)", "")]),
    ("Loss", "short", "Of the last step's global batch.", [('avg(student_loss{term="total"})', "")]),
    ("Tokens a second", "short", "Of all workers together.", [("max(job:student_tokens:rate5m)", "")]),
    (
        "Time spent waiting",
        "percentunit",
        "Share of the workers' time in which the teacher's answers are awaited.",
        [("avg(instance:student_teacher_wait:ratio_rate5m)", "")],
    ),
    (
        "Cache hits",
        "percentunit",
        "Of the lookups of the last five minutes.",
        [("avg(job:teacher_cache_hits:ratio_rate5m)", "")],
    ),
    ("Last checkpoint", "s", "So much would be lost with all workers.", [("min(student_checkpoint_age_seconds)", "")]),
    (
        "Alerts",
        "short",
        "Those that fire; docs/operations.md has each.",
        [('count(ALERTS{alertstate="firing"}) or vector(0)', "")],
    ),
]

STUDENTS: list[Panel] = [
    (
        "Loss, by term",
        "short",
        "Total is what is minimised; its terms before their weights.",
        [("avg by (term) (student_loss)", "{{term}}")],
    ),
    (
        "Held-out figures",
        "short",
        "The newest evaluation.",
        [('avg by (figure) (student_evaluation{figure=~"loss|kl|cross_entropy|agreement"})', "{{figure}}")],
    ),
    (
        "Steps and tokens a second",
        "short",
        "Every worker counts those of all.",
        [("max(rate(student_tokens_total[1m]))", "tokens"), ("max(rate(student_steps_total[1m]))", "steps")],
    ),
    (
        "Where time goes",
        "percentunit",
        "Mean over the workers, as a share of their time.",
        [("avg by (phase) (rate(student_phase_seconds_total[1m]))", "{{phase}}")],
    ),
    (
        "Step duration",
        "s",
        "From a step's begin to its moved weights.",
        [
            ("histogram_quantile(0.5, sum by (le) (rate(student_step_duration_seconds_bucket[5m])))", "median"),
            ("histogram_quantile(0.95, sum by (le) (rate(student_step_duration_seconds_bucket[5m])))", "95 %"),
        ],
    ),
    (
        "Workers",
        "short",
        "In the last step, and how many answer.",
        [("max(student_world_size)", "in the step"), ('sum(up{job="student"})', "answering")],
    ),
    (
        "Answers ahead of the step",
        "bytes",
        "What workers hold of the teacher's answers.",
        [("sum by (instance) (student_answers_held_bytes)", "{{instance}}")],
    ),
    (
        "Healed, and done again",
        "short",
        "Weights taken over from a peer; steps that were voted down.",
        [("sum(student_healed_total)", "healed"), ("max(student_uncommitted_steps_total)", "done again")],
    ),
]

TEACHER: list[Panel] = [
    (
        "Requests a second",
        "reqps",
        "By how they ended.",
        [("sum by (code) (rate(teacher_requests_total[1m]))", "{{code}}")],
    ),
    (
        "Request duration",
        "s",
        "Until the last byte.",
        [
            ("histogram_quantile(0.5, sum by (le) (rate(teacher_request_duration_seconds_bucket[5m])))", "median"),
            ("histogram_quantile(0.99, sum by (le) (rate(teacher_request_duration_seconds_bucket[5m])))", "99 %"),
        ],
    ),
    (
        "Busy",
        "percentunit",
        "Share of time that the model computes.",
        [("rate(teacher_compute_duration_seconds_sum[1m])", "{{instance}}")],
    ),
    (
        "Queue",
        "short",
        "Looked up, waiting or computing.",
        [("sum(teacher_queue_size)", "sequences"), ("sum(teacher_queue_tokens)", "tokens")],
    ),
    (
        "Tokens through the model",
        "short",
        "A second; padding is what is wasted.",
        [
            ("sum(rate(teacher_forward_tokens_total[1m]))", "tokens"),
            ("sum(rate(teacher_padding_tokens_total[1m]))", "padding"),
        ],
    ),
    (
        "Cache lookups a second",
        "short",
        "By result.",
        [("sum by (result) (rate(teacher_cache_requests_total[1m]))", "{{result}}")],
    ),
    (
        "Cache writes a second",
        "short",
        "By result.",
        [("sum by (result) (rate(teacher_cache_writes_total[1m]))", "{{result}}")],
    ),
    (
        "Answers, bytes a second",
        "Bps",
        "Of payloads, by encoding.",
        [("sum by (encoding) (rate(teacher_response_bytes_total[1m]))", "{{encoding}}")],
    ),
    (
        "Refused at a bound",
        "short",
        "A second; callers come back later.",
        [("sum by (reason) (rate(teacher_shed_total[1m])) or vector(0)", "{{reason}}")],
    ),
]

MACHINES: list[Panel] = [
    ("Resident memory", "bytes", "Of each process.", [("process_resident_memory_bytes", "{{job}} {{instance}}")]),
    ("Processor", "short", "Cores in use.", [("rate(process_cpu_seconds_total[1m])", "{{job}} {{instance}}")]),
    (
        "GPU memory",
        "bytes",
        "Of each CUDA device; empty without one.",
        [
            (
                '{__name__=~"(teacher|student)_device_memory_bytes", kind=~"total|used"} or vector(0)',
                "{{job}} {{device}} {{kind}}",
            )
        ],
    ),
    (
        "What runs",
        "short",
        "One line for each build.",
        [
            (
                'count by (job, version, commit) ({__name__=~"(teacher|student)_build_info"})',
                "{{job}} {{version}} {{commit}}",
            )
        ],
    ),
]

ROWS = [
    ("At a glance", "stat", 3, 4, AT_A_GLANCE),
    ("Students", "timeseries", 6, 7, STUDENTS),
    ("Teacher", "timeseries", 6, 7, TEACHER),
    ("Processes", "timeseries", 6, 7, MACHINES),
]


def dashboard() -> dict[str, Any]:
    """Return the whole."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, kind, width, height, members in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        y += 1
        for place, member in enumerate(members):
            x, line = place * width % COLUMNS, place * width // COLUMNS
            grid = {"x": x, "y": y + line * height, "w": width, "h": height}
            panels.append(_panel(len(panels) + 1, kind, grid, member))
        y += height * (1 + (len(members) - 1) * width // COLUMNS)
    return {
        "uid": "stillhouse",
        "title": "Stillhouse",
        "tags": ["stillhouse"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": []},
        "panels": panels,
    }


def _panel(number: int, kind: str, grid: dict[str, int], member: Panel) -> dict[str, Any]:
    title, unit, hint, queries = member
    options: dict[str, Any] = (
        {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"}
        if kind == "stat"
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    )
    return {
        "id": number,
        "type": kind,
        "title": title,
        "description": hint,
        "datasource": DATASOURCE,
        "gridPos": grid,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(queries)
        ],
    }


def text() -> str:
    """Return the file's content."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
