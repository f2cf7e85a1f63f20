"""`stillhouse bench teacher ADDRESS`: put a running teacher under load, and see what it does.

The token comes from the environment, since other users of a machine can read a command line. Nothing heavy is imported
until the verb runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stillhouse.errors import ConfigurationError, GuardError

if TYPE_CHECKING:
    from stillhouse.bench.drive import Load, Measured
    from stillhouse.bench.queue_size import QueueSampler
    from stillhouse.bench.workload import WorkloadSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Put a running service under load.")

TOKEN_VARIABLE = "STILLHOUSE_TEACHER_TOKEN"  # noqa: S105 - the name of a variable
SCRAPE_TOKEN_VARIABLE = "STILLHOUSE_SCRAPE_TOKEN"  # noqa: S105 - as above


@app.callback()
def _verbs() -> None:
    """Put a running service under load."""


@app.command()
def teacher(
    address: Annotated[
        str, typer.Argument(help="The teacher's address: 127.0.0.1:8001 (gRPC), or http://127.0.0.1:8000.")
    ],
    clients: Annotated[int, typer.Option(help="Clients, each with a connection of its own.")] = 4,
    seconds: Annotated[float | None, typer.Option(help="How long; 10 where --requests is not given.")] = None,
    requests: Annotated[int | None, typer.Option(help="How many requests, instead of --seconds.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: requests a second that begin whether or not earlier ones are answered. By default a "
            "client asks again when it is answered."
        ),
    ] = None,
    warmup_seconds: Annotated[float, typer.Option(help="The same load before, which is not measured.")] = 1.0,
    lengths: Annotated[
        str, typer.Option(help="Tokens of a sequence: 64, 16,64,512, 16..512 or lognormal:MEDIAN:SIGMA.")
    ] = "16..512",
    encodings: Annotated[
        str, typer.Option(help="What is asked for, such as top_k:64,dense:f16,hidden,sampled:50,candidates; or all.")
    ] = "all",
    positions: Annotated[str, typer.Option(help="all, last, or sample:N of each sequence.")] = "all",
    repeat: Annotated[float, typer.Option(help="Share of requests that were asked before, from 0 to 1.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Sequences in a request.")] = 1,
    candidates: Annotated[int, typer.Option(help="Ids at each position, where `candidates` names none.")] = 16,
    temperature: Annotated[float, typer.Option(help="Temperature of each request.")] = 1.0,
    cache_mode: Annotated[Literal["use", "refresh", "bypass"], typer.Option(help="What the cache may do.")] = "use",
    seed: Annotated[
        int | None, typer.Option(help="Decides what is asked. By default drawn: the same again is in the cache.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare each answer to a repeated request with the first; exit 3 if not.")
    ] = False,
    max_attempts: Annotated[int, typer.Option(help="How often a request is tried; 1 is without retries.")] = 12,
    timeout_seconds: Annotated[float, typer.Option(help="The deadline of a request, retries included.")] = 120.0,
    metrics: Annotated[
        str | None, typer.Option(help="The teacher's HTTP address, whose /metrics say how long the queue is.")
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(help="TLS: PEM file of the authority that signed the teacher's certificate, or system."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Mutual TLS: PEM file of this client's certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="Mutual TLS: PEM file of its private key.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here too, as JSON.")] = None,
) -> None:
    """Drive a running teacher with a mix of lengths, encodings and repeats; report throughput, latency and errors.

    A token is read from STILLHOUSE_TEACHER_TOKEN, and one for /metrics alone from STILLHOUSE_SCRAPE_TOKEN.
    """
    from stillhouse.bench.drive import Load
    from stillhouse.bench.queue_size import QueueSampler
    from stillhouse.bench.workload import WorkloadSettings
    from stillhouse.credentials import credentials_for

    token = os.environ.get(TOKEN_VARIABLE) or None
    settings = WorkloadSettings(
        lengths=lengths,
        encodings=encodings,
        positions=positions,
        repeat=repeat,
        batch=batch,
        candidates=candidates,
        temperature=temperature,
        cache_mode=cache_mode,
    )
    load = Load(
        clients=clients,
        seconds=10.0 if seconds is None and requests is None else seconds,
        requests=requests,
        rate=rate,
        warmup_seconds=warmup_seconds,
        seed=secrets.randbits(31) if seed is None else seed,
        verify=verify,
    )
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigurationError(f"--json {json_file}: there is no such folder")
    sampler = None
    if metrics is not None:
        sampler = QueueSampler(metrics, token=os.environ.get(SCRAPE_TOKEN_VARIABLE) or token, ca=ca)
    options = {
        "token": token,
        "credentials": credentials_for(address, ca, certificate, key),
        "max_attempts": max_attempts,
        "timeout_seconds": timeout_seconds,
    }
    _report(address, settings, load, asyncio.run(_drive(address, settings, load, options, sampler)), json_file)


async def _drive(
    address: str,
    settings: WorkloadSettings,
    load: Load,
    options: dict[str, Any],
    sampler: QueueSampler | None,
) -> Measured:
    from rich.console import Console

    from stillhouse.bench.drive import drive
    from stillhouse.bench.progress import watching

    with watching(Console(stderr=True), load) as on_answer:
        return await drive(address, settings, load, client_options=options, queue=sampler, on_answer=on_answer)


def _report(address: str, settings: WorkloadSettings, load: Load, measured: Measured, json_file: Path | None) -> None:
    from rich.console import Console

    from stillhouse.bench.report import build_report, print_report

    report = build_report(address, settings, load, measured)
    print_report(report, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if not report["figures"]["requests"]:
        raise ConfigurationError("no request was answered: " + "; ".join(report["error_messages"].values()))
    if report["different"] and measured.teacher.mode == "deterministic":
        raise GuardError(f"{report['different']} answer(s) differ from the first to the same request")
