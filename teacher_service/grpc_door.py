"""The gRPC server: the teacher, health, and reflection where it is asked for, with bounds on what a caller may do.

Who may come in is in `grpc_gate`, what is answered in `servicer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stillhouse.errors import ConfigurationError
from teacher_service.admission import Admission
from teacher_service.answering import Serving
from teacher_service.connections import close_port
from teacher_service.grpc_gate import HEALTH_NAME, Gate
from teacher_service.hearing import HEALTH_MESSAGE_BYTES
from teacher_service.metrics import Metrics
from teacher_service.request_notes import RequestNotes
from teacher_service.servicer import SERVICE_NAME, TeacherServicer
from teacher_service.settings import TeacherSettings

Context = grpc.aio.ServicerContext[Any, Any]

# What health is told of: all of this process, by no name, and the service.
_SERVICES = ("", SERVICE_NAME)

# A client that dials and says nothing, or breaks off in the middle of a handshake.
_HANDSHAKE_SECONDS = 10
# A caller that has frozen or lost its network without a word is noticed within the sum of these two.
_PING_AFTER_SECONDS = 30
_PING_TIMEOUT_SECONDS = 20
# How often a client may ping us; a client that pings more often than this is sent away.
_MIN_CLIENT_PING_SECONDS = 10
# Connections are renewed, so that replicas share the load anew and nothing is left in one for ever.
_CONNECTION_IDLE_SECONDS = 600
_CONNECTION_AGE_SECONDS = 1800
# A status message of ours has at most 2,000 characters, a token a few hundred.
_MAX_METADATA_BYTES = 16 * 1024
# What one connection may ask at once; further calls wait at the client.
_MAX_STREAMS_PER_CONNECTION = 1024


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc,name-defined]  # its stubs know the threaded one only
    """Answers what health's package leaves out, too."""

    async def List(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        """Say how it stands with everything that `Check` knows."""
        del request
        known = {name: await self.Check(health_pb2.HealthCheckRequest(service=name), context) for name in _SERVICES}
        return health_pb2.HealthListResponse(statuses=known)


def server_options(settings: TeacherSettings, max_received_bytes: int) -> list[tuple[str, int]]:
    """Return gRPC's own bounds; times in milliseconds there."""
    return [
        ("grpc.max_receive_message_length", max_received_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1000),
        ("grpc.keepalive_time_ms", _PING_AFTER_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_CLIENT_PING_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", _CONNECTION_IDLE_SECONDS * 1000),
        ("grpc.max_connection_age_ms", _CONNECTION_AGE_SECONDS * 1000),
        ("grpc.max_connection_age_grace_ms", round(settings.max_call_seconds * 1000)),
        # Two services on one port would each get some of the calls; the fronts of one service should.
        ("grpc.so_reuseport", int(settings.front_processes > 0)),
    ]


class GrpcDoor:
    """The gRPC server and, where TLS closes it to probes, one of health alone on a Unix socket; for one event loop."""

    def __init__(
        self,
        serving: Serving,
        metrics: Metrics,
        admission: Admission,
        notes: RequestNotes,
        settings: TeacherSettings,
    ) -> None:
        self._gate = gate = Gate(admission, metrics, notes, send_stall_seconds=settings.send_stall_seconds)
        options, health_options = (
            server_options(settings, size) for size in (settings.max_message_bytes, HEALTH_MESSAGE_BYTES)
        )
        self._server = grpc.aio.server(interceptors=[gate], options=options)
        self._health_server = grpc.aio.server(interceptors=[gate], options=health_options)
        self._health = HealthServicer()
        TeacherServicer(serving, metrics, settings.max_message_bytes).add_to(self._server)
        for server in (self._server, self._health_server):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def open(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on host:port, not yet serving; return the port.

        Raises:
            ConfigurationError: gRPC cannot listen there.
        """
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            # It has said on stderr why.
            raise ConfigurationError(
                f"grpc_port: gRPC cannot listen on {address}; write the host out in full"
            ) from None
        await self.set_serving(serving=False)
        self._gate.port = port
        await self._server.start()
        return port

    async def open_health(self, path: Path) -> None:
        """Listen for health checks alone on a Unix socket."""
        self._health_server.add_insecure_port(f"unix:{path}")
        await self._health_server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Say to health checks whether requests are accepted."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in _SERVICES:
            await self._health.set(name, status)

    async def close(self, grace_seconds: float) -> None:
        """Accept nothing new and end; what should be finished has been. Health on its own socket has the grace."""
        if self._gate.port:
            close_port(self._gate.port)
        await self._server.stop(grace_seconds)
        await self._health_server.stop(grace_seconds)
