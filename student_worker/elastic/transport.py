"""How a newcomer gets the state of a peer: HTTP, safetensors and JSON, and the run's token on both sides.

A peer serves its live tensors between `send_checkpoint` and `disallow_checkpoint`, that is while nobody moves the
weights, without a copy. What is sent is framed as

    8 bytes length, JSON metadata | safetensors | 16 bytes Poly1305 over all before it

whose key, for this answer alone, is a keyed BLAKE2b over the asker's nonce and the step. Ten times as quick as a hash,
it keeps up with the network. The last 16 bytes are sent only if the weights are still the ones of that step: a transfer
that was overtaken is a truncated one. The asker proves with a keyed hash that it knows the token, and the trailer
proves the same of the peer; the token itself never travels. The weights are not encrypted. Nothing is unpickled.

Knows nothing of what the tensors mean; torchft's Manager calls it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305
from torch import Tensor
from torchft.checkpointing import CheckpointTransport

from stillhouse.errors import CheckpointError, CodecError, ConfigurationError
from student_worker.failpoints import fail_point
from student_worker.tensor_stream import chunks_of, read_tensors, size_of

MAX_STATE_BYTES = 1 << 40
"""More than any state that one worker holds; keeps a false length from being believed."""
MAX_METADATA_BYTES = 64 << 20
"""Metadata are positions, hashes and random states."""
MAX_TRANSFERS = 4
"""Newcomers served at once; further ones wait a while, and are then told to come again (503), at the next step."""
SOCKET_TIMEOUT_SECONDS = 10.0
"""A peer that moves no byte for this long has failed."""
TRANSFER_TIMEOUT_SECONDS = 600.0
"""The default bound of a whole transfer."""
ALIGNMENT = 64
"""Bytes that a tensor of the room begins at a multiple of, as if it were one of its own."""
SHUTDOWN_POLL_SECONDS = 0.05
"""How soon the server notices that it should end."""

TAG_BYTES = 16
NONCE_HEADER = "X-Stillhouse-Nonce"
PROOF_HEADER = "X-Stillhouse-Proof"

State = dict[str, Any]
"""What torchft's Manager hands over: {"user": {"default": (tensors, metadata)}, "torchft": {...}}."""

_log = logging.getLogger(__name__)


class TokenRefusedError(ConfigurationError):
    """The peer does not know this run's token, or this worker does not."""


def _keyed(token: str, *parts: bytes) -> Any:
    # BLAKE2b takes keys of up to 64 bytes: a longer token is condensed first.
    digest = hashlib.blake2b(key=hashlib.sha256(token.encode()).digest(), digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest


def _seal(token: str, nonce: str, step: int) -> Poly1305:
    """Return what seals one answer: Poly1305 needs a key for each message, and no nonce comes twice."""
    return Poly1305(_keyed(token, b"answer", nonce.encode(), str(step).encode()).digest())


def _proof(token: str, nonce: str, path: str) -> str:
    return str(_keyed(token, b"ask", nonce.encode(), path.encode()).hexdigest())


class _Offer:
    """The state of one step, until it is withdrawn."""

    def __init__(self, step: int, tensors: dict[str, Tensor], metadata: bytes) -> None:
        self.step = step
        self.tensors = tensors
        self.metadata = metadata
        self.size = 8 + len(metadata) + size_of(tensors) + TAG_BYTES
        self.withdrawn = threading.Event()

    def chunks(self, token: str, nonce: str) -> Iterator[bytes | memoryview]:
        """Yield the whole answer; ends early, without the trailer, once the offer is withdrawn."""
        seal = _seal(token, nonce, self.step)
        head = len(self.metadata).to_bytes(8, "little") + self.metadata
        seal.update(head)
        yield head
        for chunk in chunks_of(self.tensors):
            if self.withdrawn.is_set():
                return
            seal.update(chunk)
            yield chunk
            fail_point("mid-offer", self.step)
        if not self.withdrawn.is_set():
            yield seal.finalize()


class StateTransport(CheckpointTransport):  # type: ignore[misc]  # torchft ships no types
    """Serves this worker's state to newcomers, and fetches a peer's.

    Args:
        host: the address that peers reach this worker at; the server binds to it.
        token: the run's secret; both sides must know it.
        max_state_bytes: the most that is accepted from a peer.
        offer_timeout_seconds: how long one who asks waits for this worker to offer the state.
        transfer_timeout_seconds: how long a transfer to this worker may take in all; a peer that has to go on ends
            it sooner.
    """

    def __init__(
        self,
        host: str,
        token: str,
        *,
        max_state_bytes: int = MAX_STATE_BYTES,
        offer_timeout_seconds: float = SOCKET_TIMEOUT_SECONDS,
        transfer_timeout_seconds: float = TRANSFER_TIMEOUT_SECONDS,
    ) -> None:
        if not token:
            raise ConfigurationError("the run's token is empty; every worker of a run needs the same secret")
        self._token = token
        self._max_state_bytes = max_state_bytes
        self._offer_timeout_seconds = offer_timeout_seconds
        self._transfer_timeout_seconds = transfer_timeout_seconds
        self._room: dict[str, Tensor] = {}
        self._offer: _Offer | None = None
        self._offered = threading.Condition()
        self._slots = threading.BoundedSemaphore(MAX_TRANSFERS)
        self._server = _server(host, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(SHUTDOWN_POLL_SECONDS,), name="state-transport", daemon=True
        )
        self._thread.start()

    def metadata(self) -> str:
        """Return the address that peers fetch from."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}/state/" if ":" in str(host) else f"http://{host!s}:{port}/state/"

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Have memory at hand for a state of tensors like these.

        Peers wait while a newcomer fetches theirs, and fresh memory can cost more than the network: the kernel clears
        each page as it is first written, and a virtual machine may have to find it. It is one block, which the system
        has back at once: of many small ones the allocator keeps the most.
        """
        starts = [0, *accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors.values())]
        block = torch.empty(starts[-1], dtype=torch.uint8).fill_(0)
        self._room = {
            name: block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, (name, tensor) in zip(starts, tensors.items(), strict=False)
        }

    def give_up_room(self) -> None:
        """Let go of that memory."""
        self._room = {}

    def send_checkpoint(self, dst_ranks: list[int], step: int, state_dict: State, timeout: timedelta) -> None:
        """Offer the state to whoever asks, until `disallow_checkpoint`; returns at once."""
        del dst_ranks, timeout
        tensors, metadata = state_dict["user"]["default"]
        text = json.dumps({"torchft": state_dict["torchft"], "metadata": metadata}, allow_nan=False)
        with self._offered:
            self._offer = _Offer(step, tensors, text.encode())
            self._offered.notify_all()

    @property
    def is_offering(self) -> bool:
        """Whether a newcomer may be fetching the state now."""
        return self._offer is not None

    def disallow_checkpoint(self) -> None:
        """Withdraw the offer: the weights are about to move. A transfer still under way ends truncated."""
        with self._offered:
            if self._offer is not None:
                self._offer.withdrawn.set()
                self._offer = None

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> State:
        """Fetch the state of `step` from the peer at address `metadata`.

        `timeout`, torchft's for a step, is not the bound: a large state on a slow network takes longer, and the peers
        wait longer from failure to failure.

        Raises:
            TokenRefusedError: If one of the two does not know the run's token.
            CheckpointError: If the peer has no such state now, or what it sent is truncated, altered or too large.
        """
        del timeout
        try:
            return self._fetch(f"{metadata}{step}", step)
        except (OSError, http.client.HTTPException, CodecError) as error:
            raise CheckpointError(f"no state of step {step} from worker {src_rank} at {metadata}: {error}") from error

    def _fetch(self, url: str, step: int) -> State:
        address = urllib.parse.urlsplit(url)
        nonce = secrets.token_hex(16)
        # The peer may wait for its own quorum, and for a free slot, before its first byte.
        silence = 2 * self._offer_timeout_seconds + SOCKET_TIMEOUT_SECONDS
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=silence)
        with contextlib.closing(connection):
            connection.request(
                "GET",
                address.path,
                headers={NONCE_HEADER: nonce, PROOF_HEADER: _proof(self._token, nonce, address.path)},
            )
            response = connection.getresponse()
            if response.status == http.HTTPStatus.UNAUTHORIZED:
                raise TokenRefusedError(f"{url} refused this worker: it was started without the run's token")
            if response.status != http.HTTPStatus.OK:
                raise CheckpointError(f"{url} answered {response.status} {response.reason}")
            return self._read(response, nonce, step, time.monotonic() + self._transfer_timeout_seconds)

    def _read(self, response: http.client.HTTPResponse, nonce: str, step: int, deadline: float) -> State:
        announced = int(response.headers.get("Content-Length", "0"))
        if not TAG_BYTES < announced <= self._max_state_bytes:
            raise CodecError(f"the peer announces {announced} bytes; the limit is {self._max_state_bytes}")
        seal = _seal(self._token, nonce, step)

        def read_into(target: memoryview) -> None:
            _fill(response, target, deadline)
            seal.update(target)

        length = bytearray(8)
        read_into(memoryview(length))
        if (size := int.from_bytes(length, "little")) > min(MAX_METADATA_BYTES, announced):
            raise CodecError(f"the metadata announces {size} bytes")
        text = bytearray(size)
        read_into(memoryview(text))
        fail_point("mid-heal", step)
        tensors = read_tensors(read_into, limit_bytes=announced - 8 - size - TAG_BYTES, room=self._room)
        trailer = bytearray(TAG_BYTES)
        _fill(response, memoryview(trailer), deadline)
        if not hmac.compare_digest(bytes(trailer), seal.finalize()):
            raise TokenRefusedError("the peer's answer was altered, or it does not know the run's token")
        content = json.loads(text)
        return {"user": {"default": (tensors, content["metadata"])}, "torchft": content["torchft"]}

    def answer(self, path: str, nonce: str, proof: str, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request; called by the server's threads."""
        if not hmac.compare_digest(proof.encode(), _proof(self._token, nonce, path).encode()):
            handler.send_error(http.HTTPStatus.UNAUTHORIZED, "this run's token is needed")
        elif (offer := self._await_offer(path)) is None:
            handler.send_error(http.HTTPStatus.NOT_FOUND, "no such state is offered now")
        elif not self._slots.acquire(timeout=self._offer_timeout_seconds):
            handler.send_error(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many transfers at once")
        else:
            try:
                handler.send_response(http.HTTPStatus.OK)
                handler.send_header("Content-Type", "application/octet-stream")
                handler.send_header("Content-Length", str(offer.size))
                handler.end_headers()
                for chunk in offer.chunks(self._token, nonce):
                    handler.wfile.write(chunk)
            finally:
                self._slots.release()

    def _await_offer(self, path: str) -> _Offer | None:
        """Return the offer that a path names; a newcomer may ask a moment before the Manager has made it."""

        def named() -> _Offer | None:
            return self._offer if self._offer is not None and path == f"/state/{self._offer.step}" else None

        with self._offered:
            self._offered.wait_for(named, timeout=self._offer_timeout_seconds)
            return named()

    def shutdown(self, wait: bool = True) -> None:
        """Stop serving."""
        self.disallow_checkpoint()
        self._server.shutdown()
        self._server.server_close()
        if wait:
            self._thread.join(timeout=SOCKET_TIMEOUT_SECONDS)


def _fill(response: http.client.HTTPResponse, target: memoryview, deadline: float) -> None:
    done = 0
    while done < len(target):
        if time.monotonic() > deadline:
            raise CodecError("the peer's answer took longer than the group waits for anyone")
        count = response.readinto(target[done:])
        if not count:
            raise CodecError("the peer's answer is truncated: it moved on, or was lost")
        done += count


def _server(host: str, transport: StateTransport) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = SOCKET_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            try:
                transport.answer(
                    self.path, self.headers.get(NONCE_HEADER, ""), self.headers.get(PROOF_HEADER, ""), self
                )
            except OSError as error:
                _log.warning("a transfer to %s ended early: %s", self.client_address[0], error)

        def log_message(self, template: str, *args: Any) -> None:
            _log.debug("%s: %s", self.client_address[0], template % args)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        block_on_close = False

    return Server((host, 0), Handler)
