"""torchft's Manager, made to wait: for a lighthouse that is away, and never when this worker is told to stop.

By itself it gives up after one wait, and cannot be interrupted in it. Knows nothing of what the workers compute.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from stillhouse.errors import StillhouseError
from student_worker.prefetch import Interrupted

LIGHTHOUSE_WAIT_SECONDS = 600.0
"""A worker gives up, and may be started anew, when it had no quorum for so long: the lighthouse is away, or peers that
are alive don't come."""
RETRY_SECONDS = 1.0
"""Between one attempt's failure and the next; an attempt itself takes up to the Manager's quorum timeout."""
LEAVE_SECONDS = 5.0
"""A worker that is told to stop while it waits for a quorum leaves without one after so long: peers may be about to
count on it, but a lighthouse that is away must not hold it."""
POLL_SECONDS = 0.1

T = TypeVar("T")

_log = logging.getLogger(__name__)


class GroupLostError(StillhouseError):
    """This worker could not take part any more; started anew, it heals from its peers or the last checkpoint."""


class _InThisThread(Executor):
    """Runs what is submitted at once, in the thread that submits it."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
            done.set_exception(error)
        return done


class ToldApart:
    """A Manager's client whose quorums are told apart also when the lighthouse was started anew.

    A lighthouse counts its quorums from 1, and one that was lost and is back counts from 1 again. By the number alone a
    worker would take a quorum for the one that it is connected in, though its members are others; and those that do
    connect would find, under the same number in the same store, the addresses of connections long gone, and wait for
    them. So members stand in a quorum's number, and the step that it was formed at in the place where they meet.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _quorum(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
        told = self._client._quorum(*args, **kwargs)  # noqa: SLF001 - as torchft's Manager calls it
        fields = {name: getattr(told, name) for name in dir(told) if not name.startswith("_")}
        content = f"{told.quorum_id} {sorted(told.replica_ids)}".encode()
        fields["quorum_id"] = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")
        fields["store_address"] = f"{told.store_address}/step-{told.max_step}"
        return SimpleNamespace(**fields)


class Quorums:
    """Makes a Manager, and asks it for one quorum after another.

    Args:
        make_manager: may fail as long as the lighthouse is away.
        lighthouse: how messages name it.
        device: what the Manager's own work on weights should run on.
        stopping: set when this worker is told to stop.

    Raises:
        GroupLostError: the lighthouse stayed away.
        Interrupted: `stopping` was set meanwhile.
    """

    def __init__(
        self, make_manager: Callable[[], Any], lighthouse: str, device: torch.device, stopping: threading.Event
    ) -> None:
        self._lighthouse = lighthouse
        self._device = device
        self._stopping = stopping
        self.manager: Any = self._persist(make_manager, f"lighthouse {lighthouse} cannot be reached; start it")
        # torchft asks for a quorum in a thread that Python waits for at its end, half a minute where the lighthouse is
        # away. Here it runs in the thread that calls, which is one that nobody waits for.
        self.manager._executor = _InThisThread()  # noqa: SLF001 - there is no public way

    def form(self, step: int) -> None:
        """Form the quorum of a step, and heal this worker if it is behind.

        Raises:
            GroupLostError: none could be formed.
            Interrupted: `stopping` was set meanwhile, and none came.
        """
        self._persist(self._form_once, f"no quorum for step {step} from lighthouse {self._lighthouse}")

    def _persist(self, attempt: Callable[[], T], failure: str) -> T:
        deadline = time.monotonic() + LIGHTHOUSE_WAIT_SECONDS
        while True:
            try:
                return attempt()
            except (RuntimeError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise GroupLostError(f"{failure}: {error}") from error
                _log.warning("%s: %s; trying again for up to %.0f s", failure, error, deadline - time.monotonic())
            if self._stopping.wait(RETRY_SECONDS):
                raise Interrupted

    def _form_once(self) -> None:
        """Let torchft form it in a thread: it cannot be interrupted, and this worker may be told to stop."""
        formed: Future[None] = Future()

        def form() -> None:
            try:
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
                # A failed attempt would be raised again by the next one.
                self.manager._quorum_future = None  # noqa: SLF001 - there is no public way
                formed.set_result(self.manager.start_quorum())
            except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits
                formed.set_exception(error)

        threading.Thread(target=form, name="quorum", daemon=True).start()
        told_to_stop: float | None = None
        while not wait([formed], timeout=POLL_SECONDS).done:
            if told_to_stop is None and self._stopping.is_set():
                told_to_stop = time.monotonic()
            if told_to_stop is not None and time.monotonic() > told_to_stop + LEAVE_SECONDS:
                raise Interrupted
        formed.result()
