"""A worker whose lighthouse is away says so in one line, and leaves to be started again."""

from __future__ import annotations

import logging
import socket
from datetime import timedelta
from typing import Any

import pytest
from torch import Tensor

from student_worker import elastic
from student_worker.elastic import ElasticGroup, GroupLostError


class NoState:
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        raise AssertionError(f"nobody to heal from: {tensors}, {metadata}")


def test_a_lighthouse_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "CONNECT_TIMEOUT", timedelta(seconds=0.2))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(GroupLostError, match=f"lighthouse 127.0.0.1:{port} cannot be reached: .*start it"):
        ElasticGroup(NoState(), lighthouse=f"127.0.0.1:{port}", worker_id="w", token="t", run={}, max_workers=1)
    # These write lines without a text, several for every step.
    for name in ("torchft_quorums", "torchft_commits", "torchft_errors"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)
