"""A peer's state over real connections: only for those who know the token, and whole or not at all."""

from __future__ import annotations

import http.client
import pickle
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self

import psutil
import pytest
import torch
from torch import Tensor

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.elastic import transport
from student_worker.elastic.transport import StateTransport, TokenRefusedError

TOKEN = "secret-of-the-run"
TIMEOUT = timedelta(seconds=10)


def state(step: int = 5) -> dict[str, Any]:
    tied = torch.arange(300_000, dtype=torch.float32)
    tensors = {"weight": tied, "head": tied, "half": torch.ones(3, dtype=torch.bfloat16)}
    return {"user": {"default": (tensors, {"position": step * 16})}, "torchft": {"step": step, "batches_committed": 9}}


@pytest.fixture
def make() -> Iterator[Callable[..., StateTransport]]:
    made = []

    def start(token: str = TOKEN, **options: Any) -> StateTransport:
        made.append(StateTransport("127.0.0.1", token, **options))
        return made[-1]

    yield start
    for one in made:
        one.shutdown()


def test_a_peer_gets_the_state_as_it_is(make: Callable[..., StateTransport]) -> None:
    giver, taker = make(), make()
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    received = taker.recv_checkpoint(0, giver.metadata(), 5, TIMEOUT)
    sent: dict[str, Tensor] = state()["user"]["default"][0]
    tensors, metadata = received["user"]["default"]
    assert metadata == {"position": 80}
    assert received["torchft"] == {"step": 5, "batches_committed": 9}
    assert tensors.keys() == sent.keys()
    assert all(tensors[name].dtype == sent[name].dtype and torch.equal(tensors[name], sent[name]) for name in sent)


def test_the_memory_for_a_state_is_the_systems_again_once_it_is_given_up(make: Callable[..., StateTransport]) -> None:
    one = make()
    kept = [torch.ones(1 << 18) for _ in range(8)]
    one.make_room({f"{index}": torch.empty(1 << 18) for index in range(128)})
    kept += [torch.ones(1 << 18) for _ in range(8)]
    before = psutil.Process().memory_info().rss
    one.give_up_room()
    assert before - psutil.Process().memory_info().rss > 0.9 * 128 * (1 << 20), len(kept)


def test_one_who_asks_a_moment_too_early_waits_for_the_offer(make: Callable[..., StateTransport]) -> None:
    giver, taker = make(), make()
    timer = threading.Timer(0.2, lambda: giver.send_checkpoint([1], 5, state(), TIMEOUT))
    timer.start()
    assert taker.recv_checkpoint(0, giver.metadata(), 5, TIMEOUT)["torchft"]["step"] == 5
    timer.join()


def test_a_peer_with_another_token_gets_no_weights(make: Callable[..., StateTransport]) -> None:
    giver, stranger = make(), make("another")
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    with pytest.raises(TokenRefusedError, match="without the run's token"):
        stranger.recv_checkpoint(0, giver.metadata(), 5, TIMEOUT)


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {TOKEN}"}, {"X-Stillhouse-Proof": "\u00e9"}])
def test_a_plain_request_gets_401_and_no_bytes_of_the_state(
    make: Callable[..., StateTransport], headers: dict[str, str]
) -> None:
    giver = make()
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    address = urllib.parse.urlsplit(giver.metadata())
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.request("GET", "/state/5", headers=headers)
    response = connection.getresponse()
    assert response.status == 401
    assert len(response.read()) < 1000
    connection.close()


def test_a_proof_for_one_step_does_not_open_another(make: Callable[..., StateTransport]) -> None:
    giver = make(offer_timeout_seconds=0.0)
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    address = urllib.parse.urlsplit(giver.metadata())
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    proof = transport._proof(TOKEN, "nonce", "/state/4")
    headers = {transport.NONCE_HEADER: "nonce", transport.PROOF_HEADER: proof}
    connection.request("GET", "/state/5", headers=headers)
    assert connection.getresponse().status == 401
    connection.close()


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="token is empty"):
        StateTransport("127.0.0.1", "")


def test_a_state_that_is_not_offered_is_an_error_that_names_the_step(make: Callable[..., StateTransport]) -> None:
    giver, taker = make(offer_timeout_seconds=0.0), make()
    with pytest.raises(CheckpointError, match="answered 404"):
        taker.recv_checkpoint(0, giver.metadata(), 5, TIMEOUT)
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    with pytest.raises(CheckpointError, match="answered 404"):
        taker.recv_checkpoint(0, giver.metadata(), 6, TIMEOUT)
    giver.disallow_checkpoint()
    with pytest.raises(CheckpointError, match="answered 404"):
        taker.recv_checkpoint(0, giver.metadata(), 5, TIMEOUT)


def test_a_state_above_the_limit_is_refused_before_it_is_read(make: Callable[..., StateTransport]) -> None:
    giver, taker = make(), make(max_state_bytes=1000)
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    with pytest.raises(CheckpointError, match="the limit is 1000"):
        taker.recv_checkpoint(0, giver.metadata(), 5, TIMEOUT)


def test_nobody_at_the_address_is_an_error_that_names_it(make: Callable[..., StateTransport]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/state/"
        with pytest.raises(CheckpointError, match=address):
            make().recv_checkpoint(3, address, 5, TIMEOUT)


def test_an_offer_withdrawn_in_the_middle_ends_without_its_trailer(make: Callable[..., StateTransport]) -> None:
    giver = make()
    giver.send_checkpoint([1], 5, state(), TIMEOUT)
    offer = giver._offer
    assert offer is not None
    chunks = offer.chunks(TOKEN, "nonce")
    got = [bytes(next(chunks)) for _ in range(2)]
    giver.disallow_checkpoint()
    got += map(bytes, chunks)
    assert sum(map(len, got)) < offer.size - transport.TAG_BYTES


class Impostor:
    """A server that answers every request with the same bytes."""

    def __init__(self, body: bytes, announced: int | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body) if announced is None else announced))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/state/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def answer(token: str, nonce: str = "nonce") -> bytes:
    offer = transport._Offer(5, state()["user"]["default"][0], b'{"torchft": {}, "metadata": {}}')
    return b"".join(offer.chunks(token, nonce))


@pytest.mark.parametrize("missing", [1, 40, 100_000])
def test_a_truncated_answer_is_refused(make: Callable[..., StateTransport], missing: int) -> None:
    body = answer(TOKEN)
    with Impostor(body[:-missing], announced=len(body)) as impostor, pytest.raises(CheckpointError, match="truncated"):
        make().recv_checkpoint(0, impostor.address, 5, TIMEOUT)


def test_an_answer_to_another_question_or_without_the_token_is_refused(make: Callable[..., StateTransport]) -> None:
    for token in (TOKEN, "another"):
        with Impostor(answer(token)) as impostor, pytest.raises(TokenRefusedError, match="altered"):
            make().recv_checkpoint(0, impostor.address, 5, TIMEOUT)


def test_a_pickle_is_refused_and_not_read(make: Callable[..., StateTransport]) -> None:
    with (
        Impostor(pickle.dumps({"user": 1}) + bytes(100)) as impostor,
        pytest.raises(CheckpointError, match="announces"),
    ):
        make().recv_checkpoint(0, impostor.address, 5, TIMEOUT)
