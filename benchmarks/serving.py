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

import torch

from benchmarks._contestants import Contest, Contestant, contest
from benchmarks._positions import ENCODINGS, Positions
from benchmarks._result import Result, Value
from benchmarks.peers.table import SETTINGS, VOCABULARY

OURS = "benchmarks._table_service"
LIMITS = "benchmarks._serving_limits"
OWN = (
    Contestant("stillhouse", OURS, "table", over_grpc=True),
    Contestant("stillhouse, cache", OURS, "cache", over_grpc=True),
)
BOUNDS = (
    Contestant("limit: grpc.aio, one message", LIMITS, "grpc"),
    Contestant("limit: grpc.aio, 1 MiB chunks", LIMITS, "grpc, chunks"),
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
    contestants = [*OWN, *peers, *BOUNDS]
    rows: list[dict[str, Value]] = []
    with contest() as running:
        for contestant in contestants:
            running.start_server(contestant)
        # By setting, for each contestant the answers a second in each round.
        rates = {
            name: _rates(running, contestants, name, rounds, count // 16 if quick else count)
            for name, count in REQUESTS.items()
        }
        for name, by_contestant in rates.items():
            scale = SETTINGS[name].sequences * VOCABULARY * 4 / 1e6 if name == "large" else 1.0
            rows += [_row(f"{name}, {_unit(name)}", one, of, scale) for one, of in by_contestant.items()]
        address = running.addresses[OURS]["cache"]
        positions = _positions(address, rounds, quick=quick)
    rows += [_row("out of the cache, positions/s", name, of, 1.0) for name, of in positions.items()]
    figures = _over_peers(rates, peers)
    figures["topk64_tokens_s_over_dense"] = _ratio(positions["top_k:64"], positions["dense:f32"])
    return Result("serving", rounds, rows, figures)


def _rates(
    running: Contest, contestants: list[Contestant], setting: str, rounds: int, count: int
) -> dict[str, list[float]]:
    clients = {one.name: running.start_client(one, setting) for one in contestants}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(rounds + 1):
        for name, client in clients.items():
            seconds = client.go(count)
            if number:  # the first warms up
                rates[name].append(count / seconds)
    return rates


def _positions(address: str, rounds: int, *, quick: bool) -> dict[str, list[float]]:
    torch.set_num_threads(1)  # the service has the other core
    with Positions(address) as asking:
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
