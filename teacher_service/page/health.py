"""How each part of the service does, in one word and one sentence: what to look at first when something is wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from stillhouse.own_metrics import device_memory
from stillhouse.pages.rendering import duration, number, size
from teacher_service.auth import Access
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.page.history import History, total
from teacher_service.settings import TeacherSettings

Tone = Literal["good", "warn", "bad", "quiet"]

_RECENT_SECONDS = 60.0
_FULL = 0.8
_EXPIRES_SOON_SECONDS = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its name, how it does, and why or how much."""

    name: str
    tone: Tone
    word: str
    detail: str


class Health:
    """The parts of one service."""

    def __init__(
        self, lifecycle: Lifecycle, metrics: Metrics, access: Access, settings: TeacherSettings, history: History
    ) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._access = access
        self._settings = settings
        self._history = history

    def parts(self) -> list[Part]:
        """Return all of them, the most important first."""
        return [self._model(), self._queue(), self._cache(), self._memory(), self._who(), self._encryption()]

    def _model(self) -> Part:
        match self._lifecycle.phase:
            case "ready":
                return Part("Model", "good", "ready", "answers requests")
            case "loading":
                return Part("Model", "warn", "loading", str(self._lifecycle.progress))
            case "draining":
                return Part("Model", "warn", "draining", "finishes what it has, takes nothing new")

    def _queue(self) -> Part:
        recent = self._history.over(_RECENT_SECONDS)
        most = self._settings.max_queue_sequences
        detail = f"{number(recent.queue_size)} of {number(most)} sequences"
        if recent.shed:
            return Part("Queue", "bad", "shedding", f"{detail}; {number(recent.shed)} refused in the last minute")
        if recent.queue_size >= _FULL * most:
            return Part("Queue", "warn", "nearly full", detail)
        return Part("Queue", "good", "has room", detail)

    def _cache(self) -> Part:
        if self._lifecycle.phase != "ready":
            return Part("Cache", "quiet", "not asked yet", "")
        word, _, reason = self._lifecycle.teacher.cache_state.partition(": ")
        where = "a Redis of yours" if self._settings.redis_url is not None else "an embedded Valkey"
        match word:
            case "on":
                return Part("Cache", "good", "on", where)
            case "off":
                return Part("Cache", "quiet", "off", "every request is computed")
            case "paused":
                return Part("Cache", "bad", "paused", f"{reason}; requests are computed meanwhile")
            case _:
                return Part("Cache", "warn", word, reason)

    def _memory(self) -> Part:
        devices = device_memory()
        detail = "; ".join(f"{name}: {size(one['used'])} of {size(one['total'])}" for name, one in devices.items())
        detail = detail or "the host's"
        failures = total(self._metrics, self._metrics.out_of_memory)
        if failures:
            return Part(
                "Memory", "warn", "ran out", f"{detail}; {number(failures)} batches did not fit and were halved"
            )
        return Part("Memory", "good", "enough", detail)

    def _who(self) -> Part:
        if self._access.is_open:
            is_wide = self._settings.host not in ("127.0.0.1", "::1", "localhost")
            tone: Tone = "warn" if is_wide and self._settings.tls_client_ca is None else "quiet"
            return Part("Access", tone, "open", f"no tokens; listens on {self._settings.host}")
        return Part("Access", "good", "tokens", f"{len(self._access.tokens)} in use")

    def _encryption(self) -> Part:
        if self._settings.tls_certificate is None:
            return Part("Encryption", "quiet", "none", "no certificate is set")
        left = total(self._metrics, self._metrics.certificate_expiry) - time.time()
        if left <= 0:
            return Part("Encryption", "bad", "expired", f"the certificate ended {duration(-left)} ago")
        tone: Tone = "warn" if left < _EXPIRES_SOON_SECONDS else "good"
        return Part("Encryption", tone, "TLS", f"the certificate ends in {duration(left)}")
