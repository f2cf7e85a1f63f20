"""Checks of a deployment: the teacher over gRPC and HTTP, Redis, the lighthouse, and whether what they say fits.

Knows nothing of this machine.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from stillhouse.doctor.finding import Finding, note, ok, problem
from stillhouse.version import __version__

CLOCK_SECONDS = 30.0
"""Certificates and passes bear less than that without trouble."""

_SECONDS = 10.0
# What a teacher waits by default for a Redis that was named.
_REDIS_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class TeacherAt:
    """Where a teacher is, and how to ask it."""

    address: str
    token: str | None = None
    ca: str | None = None
    certificate: Path | None = None
    key: Path | None = None


def teacher(at: TeacherAt, run: Path | None = None) -> Iterator[Finding]:
    """Ask a teacher what it serves and one small question; compare its weights with those that a run began with."""
    from stillhouse.channel import is_local
    from stillhouse.client import TeacherClient
    from stillhouse.credentials import credentials_for
    from stillhouse.encodings import TopK
    from stillhouse.errors import PermissionDeniedError, StillhouseError, UnauthenticatedError
    from stillhouse.http_address import is_secure

    credentials = credentials_for(at.address, at.ca, at.certificate, at.key)
    remedies: dict[type[Exception], str] = {
        UnauthenticatedError: "set STILLHOUSE_TEACHER_TOKEN to a token of the teacher's",
        PermissionDeniedError: "that token opens the metrics alone: take one of the scope teacher",
    }
    try:
        with TeacherClient(
            at.address, token=at.token, timeout_seconds=_SECONDS, max_attempts=1, credentials=credentials
        ) as client:
            about = client.describe()
            yield ok("teacher", f"{at.address} serves {about.model}, {about.compute_dtype}, {about.mode} mode")
            began = time.monotonic()
            client.logits([[0, 1]], encoding=TopK(1))
            yield ok("teacher", f"answers a question of two tokens in {1000 * (time.monotonic() - began):.0f} ms")
    except StillhouseError as error:
        remedy = remedies.get(type(error), "see that it runs, that the address is right, and that nothing lies between")
        yield problem("teacher", f"{at.address}: {type(error).__name__}: {error}", remedy)
        return
    if about.version != __version__:
        yield note("teacher", f"it is release {about.version}, this is {__version__}", "see docs/upgrading.md")
    if at.token is None and not is_local(at.address):
        yield note("tokens", "the teacher asked for no token: whoever reaches it may ask", "set TEACHER_TOKENS there")
    if at.token is not None and at.ca is None and not is_secure(at.address) and not is_local(at.address):
        yield note("tokens", "the token travels in the clear", "use TLS: --teacher-ca here, tls_certificate there")
    if run is not None:
        yield from _weights(about.weights_fingerprint, run)


def http(url: str, token: str | None) -> Iterator[Finding]:
    """Ask for a service's readiness over HTTP, and compare its clock with ours."""
    request = urllib.request.Request(f"{url.rstrip('/')}/readyz")  # noqa: S310 - the operator's own address
    if token is not None:
        request.add_header("authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310 - as above
            said, date = json.load(answer), answer.headers.get("date")
    except urllib.error.HTTPError as error:
        said, date = _body(error), error.headers.get("date")
    except OSError as error:
        yield problem("HTTP", f"{url}: {error}", "see that it runs, and that the port is the one of HTTP")
        return
    status = str(said.get("status", "?"))
    detail = ", ".join(f"{name} {value}" for name, value in said.items() if name != "status")
    line = f"{url}: {status}{f' ({detail})' if detail else ''}"
    yield (
        ok("HTTP", line)
        if status in ("ready", "ok")
        else problem("HTTP", line, "wait while it loads; else see its log")
    )
    cache = str(said.get("cache", "on"))
    if cache.startswith(("paused", "refusing")):
        yield problem("Redis", f"the teacher's cache is {cache}", "mend its Redis: it comes back by itself")
    if date is not None:
        apart = abs(time.time() - parsedate_to_datetime(date).timestamp())
        if apart > CLOCK_SECONDS:
            remedy = "start a time service on both hosts: chrony, or timesyncd"
            yield problem("clock", f"this clock and that of {url} are {apart:.0f} s apart", remedy)
        else:
            yield ok("clock", f"agrees with that of {url} to a second or so")


def redis(url: str) -> Iterator[Finding]:
    """Look at the Redis that remembers answers: reachable, quick, bounded, allowed to forget."""
    try:
        import redis as client_library
    except ImportError:
        yield note("Redis", "not looked at: the package redis is not installed", "pip install 'stillhouse[teacher]'")
        return
    try:
        client: Any = client_library.Redis.from_url(url, socket_connect_timeout=_SECONDS, socket_timeout=_SECONDS)
        client.ping()
        began = time.monotonic()
        client.ping()
        seconds = time.monotonic() - began
        about = client.info()
        client.close()
    except (client_library.RedisError, ValueError, OSError) as error:
        # Its own message may hold the address, and that a password.
        kind = type(error).__name__
        yield problem("Redis", f"cannot be used: {kind}", "see TEACHER_REDIS_URL: host, port, user, password, TLS")
        return
    yield ok("Redis", f"{about.get('server_name', 'redis')} {about.get('redis_version', '?')} answers")
    if seconds > _REDIS_SECONDS:
        remedy = "bring it nearer, or raise cache_timeout_seconds"
        yield problem("Redis", f"takes {1000 * seconds:.0f} ms; a teacher waits {1000 * _REDIS_SECONDS:.0f}", remedy)
    most, policy = int(about.get("maxmemory", 0)), str(about.get("maxmemory_policy", "?"))
    if most == 0:
        remedy = "CONFIG SET maxmemory 4gb and maxmemory-policy allkeys-lfu"
        yield problem("Redis", "has no maxmemory: it grows until the host kills it", remedy)
    elif policy == "noeviction":
        yield problem(
            "Redis", "forgets nothing when it is full (noeviction)", "CONFIG SET maxmemory-policy allkeys-lfu"
        )
    else:
        used = int(about.get("used_memory", 0))
        yield ok("Redis", f"{used / 2**20:.0f} of {most / 2**20:.0f} MiB used, {policy}")


def lighthouse(address: str) -> Iterator[Finding]:
    """Look whether the place where workers meet can be reached."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, ValueError) as error:
        remedy = "stillhouse student lighthouse --host ADDRESS; open its port to the workers"
        yield problem("lighthouse", f"{address}: {error}", remedy)
    else:
        yield ok("lighthouse", f"{address} can be reached")


def _weights(found: str, run: Path) -> Iterator[Finding]:
    try:
        expected = json.loads((run / "run.json").read_text(encoding="utf-8"))["identity"]["teacher"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "name the output_dir of a run that has begun"
        yield problem("fingerprints", f"{run} holds no run ({type(error).__name__}: {error})", remedy)
        return
    if found == expected:
        yield ok("fingerprints", f"the teacher's weights are the run's: {found}")
    else:
        remedy = "serve the model that the run began with, or begin a new run"
        yield problem("fingerprints", f"the teacher's weights are {found}, the run's {expected}", remedy)


def _body(error: urllib.error.HTTPError) -> dict[str, Any]:
    try:
        said = json.load(error)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"status": f"HTTP {error.code}"}
