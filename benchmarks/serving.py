"""How fast are exact answers served, beside other servers and the bare transport?

Dense float32 answers of V = 49,152 out of a table, so that the service alone is measured, in two settings: 16 sequences
with one position each (3.1 MB an answer), 8 clients, in MB/s; and the smallest answers, 32 clients, in requests/s. Each
server and each load client has a process of its own, they take turns, and every answer is compared with the table, bit
for bit. Beside the rates stands what an answer takes of the processor, on both sides. The peers take part in `make
bench-peers`; beside them, as limits, bare transports, and what is left where a service does only what an answer is made
of. Then what Stillhouse serves out of its cache in other encodings, over gRPC, in positions a second.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager

from benchmarks._measure import one_thread
from benchmarks._result import Result, Value
from benchmarks._serving.contestants import Contest, Contestant, Turn, contest
from benchmarks._serving.positions import ENCODINGS, Positions
from benchmarks.peers.table import SETTINGS, VOCABULARY

OURS = "benchmarks._serving.table_service"
LIMITS = "benchmarks._serving.limits"
MODEL_THREAD = "benchmarks._serving.model_thread"
OWN = (
    Contestant("stillhouse, http", OURS, "http"),
    Contestant("stillhouse, http, cache", OURS, "cache"),
    Contestant("stillhouse, grpc", OURS, "grpc", over_grpc=True),
)
BOUNDS = (
    Contestant("limit: grpc.aio, one message", LIMITS, "grpc"),
    Contestant("limit: grpc.aio, 1 MiB chunks", LIMITS, "grpc, chunks"),
    Contestant("limit: grpc.aio, made and checked", LIMITS, "grpc, checked"),
    Contestant("limit: HTTP, made and checked", LIMITS, "http, checked"),
    Contestant("limit: HTTP, a model's thread", MODEL_THREAD, "http"),
    Contestant("limit: TCP", LIMITS, "tcp"),
)
PEERS = (
    Contestant("mosec", "benchmarks.peers.mosec_peer", "http", "mosec"),
    Contestant("litserve", "benchmarks.peers.litserve_peer", "http", "litserve"),
    Contestant("mlserver", "benchmarks.peers.mlserver_peer", "grpc", "mlserver", over_grpc=True),
    Contestant("pytriton, grpc", "benchmarks.peers.pytriton_peer", "grpc", "pytriton", over_grpc=True),
    Contestant("pytriton, http", "benchmarks.peers.pytriton_peer", "http", "pytriton"),
)
PEERS_VARIABLE = "STILLHOUSE_BENCH_PEERS"
"""Peers that are installed take part where it is set: `make bench` runs ours alone."""
REQUESTS = {"large": 48, "small": 800}

Rates = dict[str, dict[str, list[float]]]
"""By setting, for each contestant the answers a second in each round."""


def measure(quick: bool) -> Result:
    """Measure both settings and the encodings; the figures are medians of the rounds' ratios."""
    rounds = 2 if quick else 5
    peers = [peer for peer in PEERS if peer.python.exists()] if os.environ.get(PEERS_VARIABLE) else []
    rows: list[dict[str, Value]] = []
    with contest() as running:
        turns = _Turns(running, [*OWN, *peers, *BOUNDS])
        rates: Rates = {}
        for name, full in REQUESTS.items():
            count = full // 16 if quick else full
            scale = SETTINGS[name].sequences * VOCABULARY * 4 / 1e6 if name == "large" else 1.0
            rates[name] = {}
            for one, of in turns.take(name, rounds, count).items():
                rates[name][one] = [count / turn.seconds for turn in of]
                row = _row(f"{name}, {_unit(name)}", one, rates[name][one], scale)
                rows.append(row | {"server_ms": _ms([turn.server_seconds for turn in of], count)})
                rows[-1]["client_ms"] = _ms([turn.client_seconds for turn in of], count)
        address = running.addresses[OURS]["grpc"]
        positions = _positions(address, rounds, quick=quick)
    rows += [_row("out of the cache, positions/s", name, of, 1.0) for name, of in positions.items()]
    rows += [{"setting": "failed", "contestant": name, "why": why} for name, why in turns.failed.items()]
    figures = _over_peers(rates, peers, rounds)
    for name, encoding in (("topk64", "top_k:64"), ("sampled50", "sampled:50")):
        figures[f"{name}_tokens_s_over_dense"] = _ratio(positions[encoding], positions["dense:f32"])
    return Result("serving", rounds, rows, figures)


class _Turns:
    """Contestants that take turns. A peer that fails is left out from then on; that one of ours does is an error.

    What was measured of it before stands in the table, and in the figures of those settings that it did to the end.
    """

    def __init__(self, running: Contest, contestants: list[Contestant]) -> None:
        self._running = running
        self._contestants = contestants
        self.failed: dict[str, str] = {}
        for contestant in contestants:
            with self._bearing_with(contestant):
                running.start_server(contestant)

    def take(self, setting: str, rounds: int, count: int) -> dict[str, list[Turn]]:
        """Return by contestant its turn in each round."""
        clients = {}
        for contestant in self._going():
            with self._bearing_with(contestant):
                clients[contestant.name] = self._running.start_client(contestant, setting)
        turns: dict[str, list[Turn]] = {name: [] for name in clients}
        for number in range(rounds + 1):
            for contestant in self._going():
                with self._bearing_with(contestant):
                    turn = clients[contestant.name].go(count)
                    if number:  # the first warms up
                        turns[contestant.name].append(turn)
        return {name: of for name, of in turns.items() if of}

    def _going(self) -> list[Contestant]:
        return [one for one in self._contestants if one.name not in self.failed]

    @contextmanager
    def _bearing_with(self, contestant: Contestant) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if contestant.environment is None:
                raise
            self.failed[contestant.name] = _reason(str(error))


def _reason(told: str) -> str:
    """Return the line of an error's text that says most: what gRPC calls its details, or the last one with a word."""
    lines = [line.strip() for line in told.splitlines() if any(map(str.isalpha, line))]
    return next((line for line in lines if line.startswith("details")), lines[-1] if lines else "it gave no reason")


def _positions(address: str, rounds: int, *, quick: bool) -> dict[str, list[float]]:
    # The service has the other core.
    with one_thread(), Positions(address) as asking:
        rates: dict[str, list[float]] = {name: [] for name in ENCODINGS}
        for number in range(rounds + 1):
            for name in ENCODINGS:
                began = time.perf_counter()
                positions = asking.ask(name, 1 if quick else ENCODINGS[name].requests)
                if number:
                    rates[name].append(positions / (time.perf_counter() - began))
    return rates


def _over_peers(rates: Rates, peers: SequenceOf[Contestant], rounds: int) -> dict[str, float]:
    """Return ours over the best of those peers that did a setting to the end, where there are any."""
    grpc_peers = [peer for peer in peers if peer.over_grpc]
    figures = {}
    for figure, setting, among in (
        ("dense_mb_s_over_best_grpc_peer", "large", grpc_peers),
        ("dense_mb_s_over_best_peer", "large", peers),
        ("rps_over_best_peer", "small", peers),
    ):
        theirs = [rates[setting].get(peer.name, []) for peer in among]
        ratios = [_ratio(rates[setting][OWN[0].name], of) for of in theirs if len(of) == rounds]
        if ratios:
            figures[figure] = min(ratios)
    return figures


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _unit(setting: str) -> str:
    return "MB/s" if setting == "large" else "requests/s"


def _ms(seconds: list[float], count: int) -> float:
    return round(statistics.median(seconds) / count * 1e3, 3)


def _row(setting: str, contestant: str, rates: list[float], scale: float) -> dict[str, Value]:
    values = [rate * scale for rate in rates]
    return {
        "setting": setting,
        "contestant": contestant,
        "min": round(min(values), 1),
        "median": round(statistics.median(values), 1),
        "max": round(max(values), 1),
    }
