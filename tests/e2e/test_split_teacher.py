"""A teacher under torchrun: one process serves, the other computes beside it, and both end in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stillhouse.client import TeacherClient
from stillhouse.encodings import Dense
from stillhouse.models import load_causal_lm
from stillhouse.payloads import DenseLogits
from stillhouse.request import All, LogitsRequest, Sequence

WAIT_SECONDS = 120.0

pytestmark = pytest.mark.long


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()


def test_a_teacher_split_over_two_processes_serves_and_drains(tiny_llama_folder: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("TEACHER_")}
    flags = ["--tp-plan", "auto", "--model", str(tiny_llama_folder), "--cache", "off", "--ready-file", str(ready)]
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "teacher_service", "--grpc-port", "0", "--http-port", "0", *flags],
        env={**clean, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as torchrun, ending(torchrun):  # fmt: skip
        deadline = time.monotonic() + WAIT_SECONDS
        while not ready.exists():
            assert torchrun.poll() is None, torchrun.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ids = tuple(range(3, 40))
        with TeacherClient(json.loads(ready.read_text())["grpc"]) as client, torch.inference_mode():
            answer = client.answer(LogitsRequest((Sequence(ids, positions=All()),), Dense()))
            own = load_causal_lm(tiny_llama_folder)(torch.tensor([ids]), use_cache=False).logits[0]
        (payload,) = answer.payloads
        assert isinstance(payload, DenseLogits)
        torch.testing.assert_close(payload.logits, own, atol=1e-3, rtol=0)
        torchrun.send_signal(signal.SIGTERM)
        _, errors = torchrun.communicate(timeout=WAIT_SECONDS)
        assert "leader_gone" in errors
        assert '"event": "stopped"' in errors
        assert not ready.exists()
