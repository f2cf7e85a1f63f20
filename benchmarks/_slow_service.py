"""The real teacher service in a process of its own, its backend without a model and of a fixed time for each batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_PROGRAM = """
import asyncio, json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from stillhouse.logs import configure_logging
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings

seconds, vocabulary_size, has_own_core, settings = json.loads(sys.argv[1])

class Slow(FixtureBackend):
    def forward(self, sequences):
        time.sleep(seconds)
        return super().forward(sequences)

async def main():
    if has_own_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    configure_logging("error", "json")
    chosen = TeacherSettings(backend="fixture", http_port=0, grpc_port=0, **settings)
    service = TeacherService(chosen, ThreadPoolExecutor(1), None, opener=lambda _: Slow(vocabulary_size))
    await service.open()
    await service.load()
    print(service.grpc_port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def slow_service(
    batch_seconds: float, vocabulary_size: int, settings: Mapping[str, object], *, has_own_core: bool = False
) -> Iterator[str]:
    """Serve until the end of the context; give the address.

    Args:
        batch_seconds: what the backend sleeps for, as a GPU would compute.
        vocabulary_size: V.
        settings: the service's.
        has_own_core: keep it on the last of this process' cores.
    """
    argument = json.dumps([batch_seconds, vocabulary_size, has_own_core, dict(settings)])
    service = subprocess.Popen([sys.executable, "-c", _PROGRAM, argument], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        yield f"127.0.0.1:{int(service.stdout.readline())}"
    finally:
        service.kill()
        service.wait()
        if service.stdout is not None:
            service.stdout.close()
