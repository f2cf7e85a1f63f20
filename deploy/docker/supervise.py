#!/usr/bin/env python3
"""`stillhouse-supervise [--hold=PORT] [NAME=FILE ...] -- COMMAND`: run a command whose secrets lie in files.

Each NAME=FILE becomes a variable of the command's environment, with what the file holds. Signals are passed on.

With --hold a command that ends with 2 (wrong configuration) or 3 (a guard stopped the run) is not to be started again,
which no restart policy of Docker's knows: the container then stays, ill, says why, and ends with that code when it is
stopped. Prometheus finds `stillhouse_ended_code` there. Any other code is the container's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import NoReturn

NEVER_AGAIN = {2: "its configuration or input is wrong", 3: "a guard stopped the run"}
WRONG_INPUT = 2

METRICS = """\
# HELP stillhouse_ended_code Exit code of a service that has ended and is not to be started again.
# TYPE stillhouse_ended_code gauge
stillhouse_ended_code {code}
"""


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    own, _, command = _split(arguments)
    port = int(own.pop(0).removeprefix("--hold=")) if own and own[0].startswith("--hold=") else None
    stopping = threading.Event()
    child: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        stopping.set()
        if child:
            child[0].send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    try:
        environment = {**os.environ, **_secrets(own)}
        child.append(subprocess.Popen(command, env=environment))
        if stopping.is_set():
            child[0].terminate()
        code = child[0].wait()
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        code = WRONG_INPUT
    code = 128 - code if code < 0 else code
    if port is not None and code in NEVER_AGAIN and not stopping.is_set():
        _hold(port, code, stopping)
    return code


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in arguments or arguments[-1] == "--":
        sys.exit("error: stillhouse-supervise [--hold=PORT] [NAME=FILE ...] -- COMMAND")
    at = arguments.index("--")
    return arguments[:at], "--", arguments[at + 1 :]


def _secrets(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, _, file = pair.partition("=")
        found[name] = Path(file).read_text(encoding="utf-8").strip()
    return found


def _hold(port: int, code: int, stopping: threading.Event) -> None:
    """Answer /livez as one that is ill, and /metrics with the code, until a signal comes."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_metrics = self.path == "/metrics"
            body = METRICS.format(code=code) if is_metrics else f"ended with {code}: {NEVER_AGAIN[code]}\n"
            self.send_response(200 if is_metrics else 503)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing of each scrape."""

    server = ThreadingHTTPServer(("", port), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stderr.write(
        f"ended with {code}: {NEVER_AGAIN[code]}, as the lines above say. Not started again by itself: mend it and "
        "start this container anew, or stop it\n"
    )
    stopping.wait()
    server.shutdown()


def _run() -> NoReturn:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    _run()
