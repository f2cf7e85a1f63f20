"""OpenTelemetry, for whoever asks for it: `pip install 'stillhouse[otel]'` and `OTEL_TRACES_EXPORTER=otlp`.

Everything else (endpoint, headers, sampling, the service's name) is set by the variables that OpenTelemetry itself
reads. Without that variable nothing of it is imported, and a span costs a comparison. Spans carry times, counts and
ids: no token, no text. Knows nothing of what is traced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stillhouse.errors import ConfigurationError

EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"

# None while tracing is off, which is the rule.
_tracer: Any = None


def configure_tracing(service: str) -> Callable[[], None]:
    """Trace this process where the environment asks for it; return what sends the last spans at its end.

    Raises:
        ConfigurationError: an exporter that is not here, or the extra is not installed.
    """
    exporter = os.environ.get(EXPORTER_VARIABLE, "").strip().lower()
    if exporter in ("", "none"):
        return _nothing
    if exporter != "otlp":
        raise ConfigurationError(f"{EXPORTER_VARIABLE} is {exporter!r}; otlp and none are known here")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"{EXPORTER_VARIABLE} is set, and {error.name} is not installed: pip install 'stillhouse[otel]'"
        ) from error
    from stillhouse.version import __version__, source_commit

    named = {"service.name": os.environ.get("OTEL_SERVICE_NAME", service), "service.version": __version__}
    commit = {"vcs.ref.head.revision": source_commit() or "unknown"}
    provider = TracerProvider(resource=Resource.create({**named, **commit}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use_tracer(provider.get_tracer("stillhouse", __version__))
    return provider.shutdown


def use_tracer(tracer: Any) -> None:
    """Trace with this tracer from now on; None traces nothing."""
    global _tracer  # noqa: PLW0603 - one process, one tracer
    _tracer = tracer


@contextmanager
def span(name: str, parent: Mapping[str, str] | None = None, **attributes: str | float) -> Iterator[Span]:
    """Trace a block.

    Args:
        name: what it does.
        parent: the headers that came with a request, which may name a span elsewhere.
        attributes: what is known of it.
    """
    if _tracer is None:
        yield Span(None)
        return
    from opentelemetry.propagate import extract

    context = None if parent is None else extract(dict(parent))
    with _tracer.start_as_current_span(name, context=context, attributes=attributes) as live:
        yield Span(live)


class Span:
    """A span, or nothing."""

    def __init__(self, live: Any) -> None:
        self._live = live

    @property
    def is_recorded(self) -> bool:
        """Whether anything that is noted of it is kept."""
        return self._live is not None

    def note(self, **attributes: str | float) -> None:
        """Add what has become known."""
        if self._live is not None:
            self._live.set_attributes(attributes)


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return what a request carries so that the other side's spans belong to the one under way here."""
    if _tracer is None:
        return ()
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple(carrier.items())


def _nothing() -> None:
    pass
