"""A real service and its fronts, as processes: killed, frozen, told to end, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.encodings import TopK
from stillhouse.messages import request_to_proto
from stillhouse.request import LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from tests.torture.service_process import OwnProcess, ServiceProcess, serving, wait_until

OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
FLAGS = ("--backend", "fixture", "--log-format", "json", "--log-requests-over-seconds", "0")


@contextmanager
def service_of(folder: Path, redis_url: str, *flags: str) -> Iterator[ServiceProcess]:
    assert not [name for name in os.environ if name.startswith("TEACHER_")]
    with serving(folder, Path("unused"), *FLAGS, *flags, redis_url=redis_url) as service:
        yield service


def fronts_of(process: OwnProcess) -> dict[int, psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return {one.pid: one for one in children if is_front(one)}


def is_front(process: psutil.Process) -> bool:
    try:
        return "teacher_service.fronts" in process.cmdline()
    except psutil.NoSuchProcess:  # one that has just ended, too
        return False


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def question(*ids: int) -> pb.ComputeLogitsRequest:
    return pb.ComputeLogitsRequest(request=request_to_proto(LogitsRequest((Sequence(ids),), TopK(4))))


def ask(channel: grpc.Channel, *ids: int, seconds: float = 20.0, request_id: str = "") -> pb.ComputeLogitsResponse:
    metadata = (("x-request-id", request_id),) if request_id else None
    answer: pb.ComputeLogitsResponse = pb_grpc.TeacherServiceStub(channel).ComputeLogits(
        question(*ids), timeout=seconds, metadata=metadata
    )
    return answer


def lines_of(folder: Path) -> list[dict[str, object]]:
    text = (folder / "teacher.log").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Callers:
    """Keep asking over connections of their own, and note how each call ended."""

    def __init__(self, address: str, count: int) -> None:
        self.codes: list[list[str]] = [[] for _ in range(count)]
        self._address = address
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(codes,)) for codes in self.codes]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)

    def _call(self, codes: list[str]) -> None:
        with grpc.insecure_channel(self._address, options=OPTIONS) as channel:
            number = 0
            while not self._is_over.is_set():
                number += 1
                try:
                    ask(channel, number % 50, number % 7)
                except grpc.RpcError as error:
                    codes.append(error.code().name)
                    time.sleep(0.02)
                else:
                    codes.append("OK")


def test_a_front_that_is_killed_disturbs_only_its_own_callers(tmp_path: Path, valkey: str) -> None:
    with service_of(tmp_path, valkey, "--front-processes", "2") as service:
        before = fronts_of(service.process)
        assert len(before) == 2
        with Callers(service.grpc, 8) as callers:
            wait_until(lambda: all(len(codes) > 20 for codes in callers.codes), 60)
            victim = next(iter(before.values()))
            port = int(service.grpc.rpartition(":")[2])
            its_own = [
                one
                for one in victim.net_connections("tcp")
                if one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port
            ]
            counts = list(map(len, callers.codes))
            victim.kill()
            wait_until(lambda: len(set(fronts_of(service.process)) - set(before)) == 1, 30)
            wait_until(
                lambda: (
                    all(codes[-10:] == ["OK"] * 10 for codes in callers.codes)
                    and all(len(codes) > count + 30 for codes, count in zip(callers.codes, counts, strict=True))
                ),
                60,
            )
        disturbed = [set(codes) - {"OK"} for codes in callers.codes if set(codes) != {"OK"}]
        assert len(disturbed) <= len(its_own)
        assert all(codes == {"UNAVAILABLE"} for codes in disturbed)
        answered = sum(codes.count("OK") for codes in callers.codes)
        counted = service.metric("teacher_requests_total", method="ComputeLogits", code="OK")
        # Of the front that died, at most what it had counted since the engine last asked is lost.
        assert 0.3 * answered < counted <= answered
        assert [line for line in lines_of(tmp_path) if line["event"] == "front_ended"]


def test_when_the_engine_is_killed_nothing_is_left(tmp_path: Path, valkey: str) -> None:
    with service_of(tmp_path, valkey, "--front-processes", "3") as service:
        fronts = fronts_of(service.process)
        assert len(fronts) == 3
        port = int(service.grpc.rpartition(":")[2])
        service.process.signal(signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, fronts.values())), 15, "the end of the fronts")
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            free.listen()


@pytest.mark.parametrize("to_all", [False, True], ids=["to the engine", "to all processes"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(tmp_path: Path, valkey: str, number: signal.Signals, to_all: bool) -> None:
    with service_of(tmp_path, valkey, "--front-processes", "2") as service:
        fronts = fronts_of(service.process)
        with grpc.insecure_channel(service.grpc, options=OPTIONS) as channel:
            assert ask(channel, 1, 2).payloads
            if to_all:
                for front in fronts.values():
                    front.send_signal(number)
                time.sleep(0.2)
                assert ask(channel, 1, 2).payloads
            service.process.signal(number)
            assert service.process.ended() == 0
        assert all(map(is_gone, fronts.values()))
        assert not [line for line in lines_of(tmp_path) if line["event"] in ("front_ended", "engine_has_gone")]


def test_hits_and_health_outlive_an_engine_that_stands_still(tmp_path: Path, valkey: str) -> None:
    with service_of(tmp_path, valkey, "--front-processes", "2") as service:
        engine = psutil.Process(service.process.pid)
        channels = [grpc.insecure_channel(service.grpc, options=OPTIONS) for _ in range(6)]
        try:
            ask(channels[0], 3, 1, 4)
            engine.suspend()
            for channel in channels:
                assert ask(channel, 3, 1, 4, seconds=5).cache_hits == 1
                check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert check.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                ask(channels[0], 2, 7, 1, seconds=0.5)
            engine.resume()
            assert ask(channels[0], 2, 7, 1).payloads
        finally:
            engine.resume()
            for channel in channels:
                channel.close()


def test_a_front_is_named_in_its_lines_and_knows_where_the_time_went(tmp_path: Path, valkey: str) -> None:
    with service_of(tmp_path, valkey, "--front-processes", "2") as service:
        with grpc.insecure_channel(service.grpc, options=OPTIONS) as channel:
            ask(channel, 5, 5, 5, request_id="named-by-me")
        wait_until(lambda: any(line.get("request_id") == "named-by-me" for line in lines_of(tmp_path)), 10)
        (line,) = [line for line in lines_of(tmp_path) if line.get("request_id") == "named-by-me"]
        assert line["front"] in (1, 2)
        assert (line["method"], line["encoding"], line["tokens"]) == ("ComputeLogits", "top_k:4:f16", 3)
        assert float(str(line["compute_seconds"])) > 0


def test_a_front_imports_no_torch(tmp_path: Path) -> None:
    program = "import sys, teacher_service.fronts.front; sys.exit('torch' in sys.modules)"
    assert OwnProcess([sys.executable, "-c", program], tmp_path / "log").ended() == 0
