"""A worker whose lighthouse is away says so in one line, and leaves to be started again."""

from __future__ import annotations

import logging
import socket
import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

from student_worker.elastic import elastic_group as elastic
from student_worker.elastic import quorum
from student_worker.elastic.elastic_group import ElasticGroup, GroupLostError
from student_worker.prefetch import Interrupted


class NoState:
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        raise AssertionError(f"nobody to heal from: {tensors}, {metadata}")


def test_a_lighthouse_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "CONNECT_TIMEOUT", timedelta(seconds=0.2))
    monkeypatch.setattr(quorum, "LIGHTHOUSE_WAIT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(GroupLostError, match=f"lighthouse 127.0.0.1:{port} cannot be reached; start it: "):
        ElasticGroup(NoState(), lighthouse=f"127.0.0.1:{port}", worker_id="w", token="t", run={}, max_workers=1)
    # These write lines without a text, several for every step.
    for name in ("torchft_quorums", "torchft_commits", "torchft_errors"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_a_worker_told_to_stop_does_not_wait_for_a_lighthouse_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "CONNECT_TIMEOUT", timedelta(seconds=0.2))
    stopping = threading.Event()
    stopping.set()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Interrupted):
        ElasticGroup(
            NoState(),
            lighthouse=f"127.0.0.1:{port}",
            worker_id="w",
            token="t",
            run={},
            max_workers=1,
            stopping=stopping,
        )


class Manager:
    """torchft's, of which a few attempts fail."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.attempts = 0

    def start_quorum(self) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise TimeoutError("nobody there")


def test_an_attempt_at_a_quorum_that_fails_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quorum, "RETRY_SECONDS", 0.01)
    manager = Manager(failures=3)
    quorums = quorum.Quorums(lambda: manager, "here:1", torch.device("cpu"), threading.Event())
    quorums.form(7)
    assert manager.attempts == 4
    assert caplog.text.count("no quorum for step 7 from lighthouse here:1: nobody there; trying again") == 3


def test_a_worker_gives_up_on_a_quorum_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(quorum, "LIGHTHOUSE_WAIT_SECONDS", 0.05)
    quorums = quorum.Quorums(lambda: Manager(failures=1000), "here:1", torch.device("cpu"), threading.Event())
    with pytest.raises(GroupLostError, match="no quorum for step 7"):
        quorums.form(7)
