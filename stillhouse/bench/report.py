"""What a load measured, as a document for machines and as tables for people. Knows nothing of how it was driven."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.bench.drive import Load, Measured
from stillhouse.bench.measure import QUANTILES, Totals
from stillhouse.bench.workload import WorkloadSettings
from stillhouse.version import __version__

Report = dict[str, Any]

_RATES = ("requests_per_second", "tokens_per_second", "positions_per_second", "megabytes_per_second")

# A client is one thread of Python: from here on it may be what is measured.
_BUSY_SHARE = 0.9

# Of an encoding that names many ids.
_LONGEST_NAME = 20


def build_report(address: str, settings: WorkloadSettings, load: Load, measured: Measured) -> Report:
    """Return everything that was asked and measured; times in seconds, sizes in bytes."""
    recorder, seconds = measured.recorder, max(measured.seconds, 1e-9)
    rows = [_row(name, recorder.by_encoding[name], seconds) for name in measured.encodings]
    if len(rows) != 1:
        rows.append(_row("all", recorder.all, seconds))
    failed = sum(recorder.errors.values())
    report = {
        "name": "bench teacher",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "stillhouse": __version__,
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "address": address,
        "teacher": {
            name: getattr(measured.teacher, name)
            for name in ("model", "fingerprint", "version", "mode", "compute_dtype", "vocabulary_size", "hidden_size")
        },
        "settings": {**asdict(settings), **asdict(load)},
        "rows": rows,
        "figures": {
            "seconds": seconds,
            "requests": recorder.all.requests,
            "failed": failed,
            "not_sent": recorder.not_sent,
            **{name: rows[-1][name] for name in _RATES} | {f"latency_{k}": v for k, v in rows[-1]["latency"].items()},
            "cache_hit_share": recorder.all.cache_hits / max(recorder.all.sequences, 1),
            "client_cpu_share": measured.cpu_seconds / seconds,
        },
        "server": {name: times.summary() for name, times in recorder.server.items()},
        "repeats": recorder.repeats,
        "cache_hits": recorder.all.cache_hits,
        "compared": recorder.compared,
        "different": recorder.different,
        "retries": measured.retries,
        "errors": dict(recorder.errors),
        "error_messages": recorder.messages,
        "queue_size": measured.queue,
    }
    return {**report, "notes": _notes(report, load)}


def _row(name: str, totals: Totals, seconds: float) -> dict[str, Any]:
    counted = (totals.requests, totals.tokens, totals.positions, totals.payload_bytes / 1e6)
    return {
        "encoding": name,
        "requests": totals.requests,
        "sequences": totals.sequences,
        **{rate: count / seconds for rate, count in zip(_RATES, counted, strict=True)},
        "bytes_per_position": totals.payload_bytes / max(totals.positions, 1),
        "cache_hits": totals.cache_hits,
        "latency": totals.latency.summary(),
    }


def _notes(report: Report, load: Load) -> list[str]:
    """Return what a reader should know before believing the numbers."""
    figures, notes = report["figures"], []
    if figures["client_cpu_share"] >= _BUSY_SHARE:
        notes.append(
            f"this client used {figures['client_cpu_share']:.0%} of a core: the teacher may be faster than it looks; "
            "run several at once"
        )
    if report["address"].rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]"):
        notes.append("client and teacher shared one machine: each took cores from the other")
    if figures["not_sent"]:
        notes.append(f"{figures['not_sent']} request(s) were never sent: too many were under way; lower --rate")
    if figures["requests"] < 100:
        notes.append(f"p99 of {figures['requests']} requests is little more than the largest of them")
    if report["different"] and report["teacher"]["mode"] != "deterministic":
        notes.append("in throughput mode the low bits of an answer may depend on what shared its batch")
    if load.rate is not None:
        notes.append("open loop: a latency counts from when its request should have begun")
    return notes


def print_report(report: Report, console: Console) -> None:
    """Print a report as tables."""
    teacher, figures = report["teacher"], report["figures"]
    console.print(
        f"{teacher['model']} ({teacher['compute_dtype']}, {teacher['mode']}) at {report['address']}: "
        f"{figures['requests']:,} requests in {figures['seconds']:.1f} s, {figures['failed']:,} failed",
        markup=False,
        soft_wrap=True,
    )
    rates = _table("", "requests", "req/s", "tokens/s", "positions/s", "MB/s", "bytes/pos", "hits")
    for row in report["rows"]:
        rates.add_row(
            _short(row["encoding"]),
            f"{row['requests']:,}",
            *(f"{row[rate]:,.1f}" for rate in _RATES),
            f"{row['bytes_per_position']:,.0f}",
            f"{row['cache_hits']:,}",
        )
    console.print(rates)
    columns = ("mean", *QUANTILES, "max")
    times = _table("milliseconds", *columns)
    named = {_short(row["encoding"]): row["latency"] for row in report["rows"]}
    for name, summary in {**named, **{f"teacher: {k}": v for k, v in report["server"].items()}}.items():
        times.add_row(name, *(f"{summary[key] * 1000:,.1f}" if summary else "" for key in columns))
    console.print(times)
    for line in _lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for head in others:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _lines(report: Report) -> list[str]:
    figures, queue = report["figures"], report["queue_size"]
    hits = f"{report['cache_hits']:,} hits ({figures['cache_hit_share']:.1%} of sequences)"
    lines = [
        f"cache: {hits}; {report['repeats']:,} repeated request(s)",
        f"client: {figures['client_cpu_share']:.0%} of a core",
    ]
    if report["settings"]["verify"]:
        lines.append(
            f"verified: {report['compared']:,} answers to repeated requests, {report['different']:,} different"
        )
    if queue:
        lines.append(f"queue: {queue['mean']:.1f} sequences on average, {queue['max']:.0f} at most")
    if report["retries"]:
        lines.append("retries: " + ", ".join(f"{count:,} {name}" for name, count in report["retries"].items()))
    for name, count in report["errors"].items():
        lines.append(f"error: {count:,} {name}: {' '.join(report['error_messages'][name].split())}")
    return lines + [f"note: {note}" for note in report["notes"]]
