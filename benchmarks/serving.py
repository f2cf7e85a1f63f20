"""How fast are exact answers served, beside other servers and the bare transport?

Dense float32 answers of V = 49,152 out of a table, so that the service alone is measured, in two settings: 16 sequences
with one position each (3.1 MB an answer), 8 clients, in MB/s; and the smallest answers, 32 clients, in requests/s. Each
server and each load client has a process of its own, they take turns, and every answer is compared with the table, bit
for bit. The peers run where `make bench-peers` has installed them; beside them, as limits, gRPC with ready bytes and a
bare TCP stream. Then what Stillhouse serves out of its cache in other encodings, in positions a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks._measure import one_thread
from benchmarks._result import Result, Value
from benchmarks._serving.contestants import Contest, Contestant, contest
from benchmarks._serving.positions import ENCODINGS, Positions
from benchmarks.peers.table import SETTINGS, VOCABULARY

OURS = "benchmarks._serving.table_service"
LIMITS = "benchmarks._serving.limits"
OWN = (
    Contestant("stillhouse", OURS, "table", over_grpc=True),
    Contestant("stillhouse, cache", OURS, "cache", over_grpc=True),
)
BOUNDS = (
    Contestant("limit: grpc.aio, one message", LIMITS, "grpc"),
    Contestant("limit: grpc.aio, 1 MiB chunks", LIMITS, "grpc, chunks"),
    Contestant("limit: grpc.aio, made and checked", LIMITS, "grpc, checked"),
    Contestant("limit: TCP", LIMITS, "tcp"),
)
PEERS = (
    Contestant("mosec", "benchmarks.peers.mosec_peer", "http", "mosec"),
    Contestant("litserve", "benchmarks.peers.litserve_peer", "http", "litserve"),
    Contestant("mlserver", "benchmarks.peers.mlserver_peer", "grpc", "mlserver", over_grpc=True),
    Contestant("pytriton, grpc", "benchmarks.peers.pytriton_peer", "grpc", "pytriton", over_grpc=True),
    Contestant("pytriton, http", "benchmarks.peers.pytriton_peer", "http", "pytriton"),
)
REQUESTS = {"large": 48, "small": 800}


def measure(quick: bool) -> Result:
    """Measure both settings and the encodings; the figures are medians of the rounds' ratios."""
    rounds = 2 if quick else 5
    peers = [peer for peer in PEERS if peer.python.exists()]
    rows: list[dict[str, Value]] = []
    with contest() as running:
        turns = _Turns(running, [*OWN, *peers, *BOUNDS])
        # By setting, for each contestant the answers a second in each round.
        rates = {name: turns.rates(name, rounds, count // 16 if quick else count) for name, count in REQUESTS.items()}
        for name, by_contestant in rates.items():
            scale = SETTINGS[name].sequences * VOCABULARY * 4 / 1e6 if name == "large" else 1.0
            rows += [_row(f"{name}, {_unit(name)}", one, of, scale) for one, of in by_contestant.items()]
        address = running.addresses[OURS]["cache"]
        positions = _positions(address, rounds, quick=quick)
    rows += [_row("out of the cache, positions/s", name, of, 1.0) for name, of in positions.items()]
    rows += [{"setting": "failed", "contestant": name, "why": why} for name, why in turns.failed.items()]
    figures = _over_peers(rates, [peer for peer in peers if peer.name not in turns.failed])
    for name, encoding in (("topk64", "top_k:64"), ("sampled50", "sampled:50")):
        figures[f"{name}_tokens_s_over_dense"] = _ratio(positions[encoding], positions["dense:f32"])
    return Result("serving", rounds, rows, figures)


class _Turns:
    """Contestants that take turns. A peer that fails is left out from then on; that one of ours does is an error.

    What was measured of it before stands in the table, and in no figure.
    """

    def __init__(self, running: Contest, contestants: list[Contestant]) -> None:
        self._running = running
        self._contestants = contestants
        self.failed: dict[str, str] = {}
        for contestant in contestants:
            with self._bearing_with(contestant):
                running.start_server(contestant)

    def rates(self, setting: str, rounds: int, count: int) -> dict[str, list[float]]:
        """Return by contestant its answers a second in each round."""
        clients = {}
        for contestant in self._going():
            with self._bearing_with(contestant):
                clients[contestant.name] = self._running.start_client(contestant, setting)
        rates: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(rounds + 1):
            for contestant in self._going():
                with self._bearing_with(contestant):
                    seconds = clients[contestant.name].go(count)
                    if number:  # the first warms up
                        rates[contestant.name].append(count / seconds)
        return {name: of for name, of in rates.items() if of}

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


def _over_peers(rates: dict[str, dict[str, list[float]]], peers: list[Contestant]) -> dict[str, float]:
    """Return ours over the best of the peers, where there are any."""
    ours = OWN[0].name

    def over(setting: str, among: list[Contestant]) -> float:
        return min(_ratio(rates[setting][ours], rates[setting][peer.name]) for peer in among)

    over_grpc = [peer for peer in peers if peer.over_grpc]
    figures = {}
    if over_grpc:
        figures["dense_mb_s_over_best_grpc_peer"] = over("large", over_grpc)
    if peers:
        figures["dense_mb_s_over_best_peer"] = over("large", peers)
        figures["rps_over_best_peer"] = over("small", peers)
    return figures


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _unit(setting: str) -> str:
    return "MB/s" if setting == "large" else "requests/s"


def _row(setting: str, contestant: str, rates: list[float], scale: float) -> dict[str, Value]:
    values = [rate * scale for rate in rates]
    return {
        "setting": setting,
        "contestant": contestant,
        "min": round(min(values), 1),
        "median": round(statistics.median(values), 1),
        "max": round(max(values), 1),
    }
