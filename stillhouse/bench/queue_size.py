"""Watches a teacher's queue while it is under load, by its metrics over HTTP. Knows nothing of the load."""

from __future__ import annotations

import asyncio
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from stillhouse.errors import ConfigurationError

_METRIC = "teacher_queue_size"
_EVERY_SECONDS = 0.25
_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 2**22


class QueueSampler:
    """Samples the queue's size, in sequences, four times a second."""

    def __init__(self, address: str, *, token: str | None = None, ca: str | Path | None = None) -> None:
        """Name where the metrics are: host:port of the HTTP door, or a whole URL.

        Raises:
            ConfigurationError: another kind of URL, or an authority that cannot be read.
        """
        url = address if "://" in address else f"http://{address}"
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"metrics must be host:port, or an http or https URL; got {address!r}")
        self._url = url if url.count("/") > 2 else f"{url}/metrics"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - http or https, checked above
        self._context: ssl.SSLContext | None = None
        if url.startswith("https://"):
            try:
                self._context = ssl.create_default_context(cafile=None if ca in (None, "system") else str(ca))
            except OSError as error:
                raise ConfigurationError(f"the authority {ca} cannot be used: {error}") from None
        self._count = 0
        self._sum = self._max = 0.0
        self._failed = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sample until the block ends.

        Raises:
            ConfigurationError: the first sample fails: the address is no teacher's, or the token opens nothing there.
        """
        try:
            await asyncio.to_thread(self._sample)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"metrics {self._url} cannot be read: {error}") from None
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def summary(self) -> dict[str, float]:
        """Return the number of samples and of those that failed, the mean and the largest size."""
        mean = self._sum / self._count if self._count else 0.0
        return {"samples": self._count, "failed": self._failed, "mean": mean, "max": self._max}

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await asyncio.to_thread(self._sample)
            except (OSError, ValueError):
                self._failed += 1

    def _sample(self) -> None:
        with urllib.request.urlopen(self._request, timeout=_TIMEOUT_SECONDS, context=self._context) as answer:  # noqa: S310 - as above
            text = answer.read(_MOST_BYTES).decode()
        lines = [line for line in text.splitlines() if line.startswith(f"{_METRIC} ")]
        if not lines:
            raise ValueError(f"there is no {_METRIC} in it")
        size = float(lines[0].split()[1])
        self._count += 1
        self._sum += size
        self._max = max(self._max, size)
