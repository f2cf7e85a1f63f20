"""One client over several replicas: calls go round, and the loss of one loses no request."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.payloads import DenseLogits
from stillhouse.processes import Child
from tests.integration.client.table_teacher import SMALL, TABLE, TableServicer, about, serving

ROOT = Path(__file__).resolve().parents[3]
REPLICA = """
import sys, time
from pathlib import Path
from tests.integration.client.table_teacher import TableServicer, serving
with serving(TableServicer()) as address:
    Path(sys.argv[1]).write_text(address)
    time.sleep(300)
"""


@contextmanager
def replica(folder: Path, name: str) -> Iterator[tuple[Child, str]]:
    """A table teacher in a process of its own, and its address."""
    said = folder / name
    command = [sys.executable, "-c", REPLICA, str(said)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Child(name, command, folder / f"{name}.log", environment) as child:
        deadline = time.monotonic() + 60
        while not (said.exists() and said.read_text()):
            assert child.poll() is None, child.tail()
            assert time.monotonic() < deadline, child.tail()
            time.sleep(0.05)
        yield child, said.read_text()


def target_of(*addresses: str) -> str:
    return f"ipv4:{','.join(addresses)}"


def test_calls_go_round_all_addresses_of_a_target() -> None:
    first, second = TableServicer(), TableServicer()
    with serving(first) as one, serving(second) as other, TeacherClient(target_of(one, other)) as client:
        deadline = time.monotonic() + 20
        while not (first.calls and second.calls):  # until both are connected
            client.answer(SMALL)
            assert time.monotonic() < deadline
        first.calls.clear()
        second.calls.clear()
        for _ in range(20):
            client.answer(SMALL)
    assert len(first.calls) == len(second.calls) == 10


async def test_calls_of_an_asyncio_client_go_round_too() -> None:
    first, second = TableServicer(), TableServicer()
    with serving(first) as one, serving(second) as other:
        async with AsyncTeacherClient(target_of(one, other)) as client:
            deadline = time.monotonic() + 20
            while not (first.calls and second.calls):
                await client.answer(SMALL)
                assert time.monotonic() < deadline


@pytest.mark.parametrize("scheme", ["dns:///", ""])
def test_a_name_is_looked_up_and_one_dead_address_of_it_does_no_harm(scheme: str) -> None:
    # localhost is ::1 too on many machines, where nobody listens.
    with serving(TableServicer()) as address, TeacherClient(f"{scheme}localhost:{address.rsplit(':')[-1]}") as client:
        assert all(client.answer(SMALL).payloads for _ in range(10))


def test_an_address_where_nobody_is_does_no_harm_beside_one_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with serving(TableServicer()) as address, TeacherClient(target_of(nobody, address)) as client:
        assert all(client.answer(SMALL).payloads for _ in range(10))
        assert client.retries == {}


def keep_asking(client: TeacherClient, until: threading.Event) -> tuple[int, list[str]]:
    """Ask until told otherwise, comparing every answer; return how many came, and what went wrong."""
    answers, wrong = 0, list[str]()
    while not until.is_set():
        try:
            (payload,) = client.answer(about((1, 2, 3), tuple(range(40)))).payloads[:1]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            wrong.append(repr(error))
        else:
            answers += 1
            if not (isinstance(payload, DenseLogits) and payload.logits.equal(TABLE[[1, 2, 3]])):
                wrong.append("another tensor")
    return answers, wrong


def test_a_replica_killed_under_load_loses_no_request(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (victim, one), (_, other) = (stack.enter_context(replica(tmp_path, name)) for name in ("one", "other"))
        client = stack.enter_context(TeacherClient(target_of(one, other)))
        done = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking, client, done) for _ in range(4)]
            time.sleep(1)
            # Frozen first, so that calls are under way there when it dies: its answers are too quick to be met
            # by chance.
            victim.signal(SIGSTOP)
            time.sleep(0.5)
            victim.signal(SIGKILL)
            time.sleep(1.5)
            done.set()
        for answers, wrong in (future.result() for future in asking):
            assert wrong == []
            assert answers > 0
        # The kill struck while calls were under way there.
        assert client.retries.get("TeacherUnavailableError", 0) > 0


@pytest.mark.long
def test_a_replica_that_freezes_is_noticed_and_its_calls_go_elsewhere(tmp_path: Path) -> None:
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    pings = [(name, 1000) for name in names]
    with ExitStack() as stack:
        (victim, one), (_, other) = (stack.enter_context(replica(tmp_path, name)) for name in ("one", "other"))
        client = stack.enter_context(TeacherClient(target_of(one, other), channel_options=pings))
        for _ in range(20):
            client.answer(SMALL)
        victim.signal(SIGSTOP)
        started = time.monotonic()
        try:
            for _ in range(20):
                assert client.answer(SMALL).payloads
        finally:
            victim.signal(SIGCONT)
        assert client.retries.get("TeacherUnavailableError", 0) > 0
        assert time.monotonic() - started < 30  # far below the deadline of a single call
