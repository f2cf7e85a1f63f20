"""What the service counts, under the names that dashboards and alerts use. Base units: seconds, bytes, tokens.

Each service has a registry of its own, so that several can live in one process (tests do). What other processes of the
same service have counted is added where figures are read. Knows nothing of who counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from stillhouse.own_metrics import show_self

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class SummedRegistry(CollectorRegistry):
    """A registry that shows what others have counted as its own."""

    adding: Callable[[Metric], Metric] | None = None
    """Adds theirs to a family; None where there are no others."""

    def collect(self) -> Iterator[Metric]:
        """Give each family, with what others have counted."""
        for family in super().collect():
            yield family if self.adding is None else self.adding(family)


async def _nothing_to_wait_for() -> None:
    pass


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = SummedRegistry()
        self.refresh: Callable[[], Awaitable[None]] = _nothing_to_wait_for
        """Asks others what they have counted by now; whoever shows figures waits for it, for a bounded time."""
        registry = self.registry
        show_self(registry, "teacher")
        self.requests = Counter(
            "teacher_requests_total",
            "Requests answered, by method and status code.",
            ["method", "code"],
            registry=registry,
        )
        self.request_duration = Histogram(
            "teacher_request_duration_seconds",
            "From a request's arrival to its last byte.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_duration = Histogram(
            "teacher_queue_duration_seconds", "A sequence's wait for its batch.", buckets=_SECONDS, registry=registry
        )
        self.compute_duration = Histogram(
            "teacher_compute_duration_seconds", "A batch's time in the model.", buckets=_SECONDS, registry=registry
        )
        self.encode_duration = Histogram(
            "teacher_encode_duration_seconds",
            "A batch's time from logits to bytes.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "teacher_requests_in_flight", "Requests let in whose answers are not sent yet.", registry=registry
        )
        self.held_bytes = Gauge(
            "teacher_held_bytes", "Most bytes that the answers of requests in flight can have.", registry=registry
        )
        self.queue_size = Gauge("teacher_queue_size", "Sequences looked up, waiting or computing.", registry=registry)
        self.queue_tokens = Gauge("teacher_queue_tokens", "Tokens looked up, waiting or computing.", registry=registry)
        self.batch_tokens = Histogram(
            "teacher_batch_tokens", "Tokens in a batch, without padding.", buckets=_TOKENS, registry=registry
        )
        self.forward_tokens = Counter(
            "teacher_forward_tokens_total", "Tokens, without padding, that went through the model.", registry=registry
        )
        self.padding_tokens = Counter(
            "teacher_padding_tokens_total", "Padding that went through the model.", registry=registry
        )
        self.out_of_memory = Counter(
            "teacher_out_of_memory_total",
            "Batches, or parts of one, that did not fit into memory and were halved or refused.",
            registry=registry,
        )
        self.shed = Counter(
            "teacher_shed_total",
            "Given up at a bound: requests, queue_sequences, queue_tokens, held_bytes, token, not_read, watchers, "
            "page_attempts.",
            ["reason"],
            registry=registry,
        )
        self.joined = Counter(
            "teacher_joined_total", "Sequences that waited for the same one already in flight.", registry=registry
        )
        self.cache_requests = Counter(
            "teacher_cache_requests_total",
            "Sequences looked up: hit, miss, corrupt (a miss), error (no cache within its time), refresh, bypass.",
            ["result"],
            registry=registry,
        )
        self.cache_writes = Counter(
            "teacher_cache_writes_total",
            "Answers to remember: stored, too_large, refused (Redis is full or read-only), error.",
            ["result"],
            registry=registry,
        )
        self.cache_paused = Gauge(
            "teacher_cache_paused", "1 while the cache is left alone because it failed.", registry=registry
        )
        self.cache_refuses_writes = Gauge(
            "teacher_cache_refuses_writes", "1 while Redis answers lookups but takes no values.", registry=registry
        )
        self.leases = Counter(
            "teacher_leases_total",
            "Sequences missed: claimed to compute here, found after all, waited for another replica, taken_over from "
            "one that died, late (it took too long), error (no cache within its time).",
            ["result"],
            registry=registry,
        )
        self.response_bytes = Counter(
            "teacher_response_bytes_total", "Bytes of payloads sent, by encoding.", ["encoding"], registry=registry
        )
        self.caller_requests = Gauge(
            "teacher_caller_requests",
            "Requests that wait, compute or are being sent, by the name of the caller's token.",
            ["caller"],
            registry=registry,
        )
        self.refused = Counter(
            "teacher_refused_total",
            "Requests refused at the door, by error: a missing, unknown or insufficient token.",
            ["error"],
            registry=registry,
        )
        self.token_reloads = Counter(
            "teacher_token_reloads_total",
            "Changes of the tokens file: used, or refused because it could not be.",
            ["result"],
            registry=registry,
        )
        self.certificate_reloads = Counter(
            "teacher_certificate_reloads_total",
            "Changes of the TLS files: used, or refused because they could not be.",
            ["result"],
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "teacher_certificate_expiry_timestamp_seconds",
            "When the TLS certificate in use ends, in seconds since 1970; 0 without TLS.",
            registry=registry,
        )
        self.ready = Gauge("teacher_ready", "1 while requests are accepted.", registry=registry)

    def families(self, metric: Counter | Gauge) -> list[Metric]:
        """Return what the registry shows of one metric."""
        adding = self.registry.adding
        return [family if adding is None else adding(family) for family in metric.collect()]
