"""A load client that is told when to go: threads or tasks that ask one question after another.

It knows nothing of how a question is asked. Needs numpy alone, for the environments of the peers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.peers.table import QUESTIONS, Ids, Setting, look_up, question, table

PATIENCE_SECONDS = 120.0
_RETRY_SECONDS = 0.2

Ask = Callable[[Ids], object]
"""Asks about ids and returns the bytes of the answer, in a buffer of any kind."""


class Checked:
    """The questions of a setting, and their right answers."""

    def __init__(self, setting: Setting) -> None:
        logits = table()
        self.questions = [question(setting, number) for number in range(QUESTIONS)]
        # A bytearray on the left compares all bytes at once, whatever kind of buffer is on the right.
        self._rows = [[bytearray(row.tobytes()) for row in look_up(logits, ids)] for ids in self.questions]
        self._answers = [bytearray().join(rows) for rows in self._rows]

    def check(self, number: int, answer: object) -> None:
        """See that this, a buffer or a list of one for each row, is the answer to a question."""
        right = (self._rows if isinstance(answer, list) else self._answers)[number % QUESTIONS]
        if not right == answer:
            raise AssertionError(f"a wrong answer to question {number}")


class _Clients:
    """Threads that each ask through a door of their own, opened in the thread: not every peer's client may move."""

    def __init__(self, setting: Setting, checked: Checked, open_door: Callable[[], Ask]) -> None:
        self._checked = checked
        self._open_door = open_door
        self._start, self._done = (threading.Barrier(setting.clients + 1) for _ in range(2))
        self._lock = threading.Lock()
        self._numbers = iter(range(0))
        self.errors: list[BaseException] = []
        for _ in range(setting.clients):
            threading.Thread(target=self._live, daemon=True).start()

    def ask(self, count: int) -> None:
        """Ask so often, all of them together."""
        self._numbers = iter(range(count))
        self._start.wait()
        self._done.wait()

    def _live(self) -> None:
        ask = self._open_door()
        while True:
            self._start.wait()
            try:
                self._ask_all(ask)
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                self.errors.append(error)
            self._done.wait()

    def _ask_all(self, ask: Ask) -> None:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            self._checked.check(number, ask(self._checked.questions[number % QUESTIONS]))


def load(setting: Setting, open_door: Callable[[], Ask]) -> None:
    """Ask from as many threads as the setting has clients."""
    checked = Checked(setting)
    _until_answered(lambda: checked.check(0, open_door()(checked.questions[0])))
    clients = _Clients(setting, checked, open_door)
    clients.ask(setting.clients)  # so that all doors are open
    for count in _turns():
        began = time.perf_counter()
        clients.ask(count)
        _tell(time.perf_counter() - began, clients.errors)


async def load_async(setting: Setting, ask: Callable[[Ids], Awaitable[object]]) -> None:
    """Ask from as many tasks as the setting has clients."""
    checked = Checked(setting)

    async def client(numbers: Iterator[int]) -> None:
        for number in numbers:
            checked.check(number, await ask(checked.questions[number % QUESTIONS]))

    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            checked.check(0, await ask(checked.questions[0]))
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_RETRY_SECONDS)
    for count in _turns():
        numbers = iter(range(count))
        began = time.perf_counter()
        await asyncio.gather(*(client(numbers) for _ in range(setting.clients)))
        _tell(time.perf_counter() - began, [])


def _until_answered(attempt: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            attempt()
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def _turns() -> Iterator[int]:
    """Yield how often to ask, whenever that is told."""
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        yield int(line.split()[1])


def _tell(seconds: float, errors: list[BaseException]) -> None:
    if errors:
        raise errors[0]
    print(json.dumps({"seconds": seconds}), flush=True)
