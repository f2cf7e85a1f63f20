"""Checkpoints at an address: a store that knows no rename, that fails half-way, and a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.checkpoints import CheckpointStore
from student_worker.checkpoints.layout import STATE_FILE
from student_worker.checkpoints.remote import STALE_TENSORS_SECONDS, Remote
from tests.integration.student_worker.checkpoint_places import assert_same, change, content, place_of_kind, some_tensors

READY_SECONDS = 60.0


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with place_of_kind("memory", tmp_path) as place:
        assert isinstance(place, Remote)
        yield place


def save(place: Remote, step: int, **keys: Any) -> None:
    CheckpointStore(place, **keys).save(step, some_tensors(step), {}, background=False)


@pytest.mark.parametrize("call", ["open", "pipe_file"])
def test_a_write_that_fails_leaves_the_previous_one_and_nothing_else(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(remote, 1)
    before = content(remote)
    real = getattr(remote._files, call)

    def fail(*arguments: Any, **keys: Any) -> Any:
        if call == "pipe_file":
            raise ConnectionResetError("the network is gone")
        file = real(*arguments, **keys)
        monkeypatch.setattr(type(file), "write", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
        return file

    with monkeypatch.context() as patched:
        patched.setattr(remote._files, call, fail)
        with pytest.raises(CheckpointError, match=r"memory://.*did not take the checkpoint of step 2.*resume"):
            save(remote, 2)
    monkeypatch.undo()
    assert content(remote) == before
    save(remote, 2)
    assert remote.steps() == [1, 2]


def test_what_a_killed_writer_left_is_invisible_and_goes_when_it_is_old(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(remote, 1)
    for name in ("checkpoint-2/tensors-0a.safetensors", "checkpoint-1/tensors-0b.safetensors"):
        change(remote, name, b"half")
    assert remote.steps() == [1]
    fresh = Remote(remote.address)
    fresh.clean()
    assert len(content(remote)) == 4, "it may be another worker's, which is still writing"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * STALE_TENSORS_SECONDS)
    save(Remote(remote.address), 3)
    assert sorted(name.split("/")[0] for name in content(remote)) == ["checkpoint-1"] * 2 + ["checkpoint-3"] * 2
    assert CheckpointStore(remote).load() is not None


def test_a_listing_that_fails_is_no_absence(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    save(remote, 1)

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionResetError("the network is gone")

    for call in ("ls", "info", "cat_file", "open"):
        with monkeypatch.context() as patched:
            patched.setattr(remote._files, call, fail)
            with pytest.raises(CheckpointError, match="the network is gone"):
                CheckpointStore(remote).best() if call == "cat_file" else CheckpointStore(remote).load()


def test_a_read_takes_little_more_memory_than_the_tensors(remote: Remote) -> None:
    tensors = {str(i): torch.randn(1 << 18) for i in range(8)}
    CheckpointStore(remote).save(1, tensors, {}, background=False)
    sizes: list[int] = []
    (name,) = (name for name in content(remote) if not name.endswith(STATE_FILE))
    with remote._files.open(f"{remote._root}/{name}", "rb") as file:
        from student_worker.checkpoints.layout import read_verified

        class Watched:
            def read(self, size: int) -> bytes:
                sizes.append(size)
                return bytes(file.read(size))

        assert_same(read_verified("here", Watched(), remote.state(1)), tensors)  # type: ignore[arg-type]  # it reads
    assert max(sizes) <= 1 << 20


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an S3 server in a process of its own."""
    for package in ("s3fs", "moto", "flask"):
        if "CI" not in os.environ:
            pytest.importorskip(package, reason="a real S3 server needs the development packages")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        ) as server,
    ):
        try:
            deadline = time.monotonic() + READY_SECONDS
            while True:
                assert server.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket, reached as a user reaches one: through the environment."""
    import s3fs

    for name, value in (
        ("AWS_ENDPOINT_URL", s3),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("runs")
    yield "s3://runs/night"
    files.rm("runs", recursive=True)


def test_a_run_in_a_bucket(bucket: str) -> None:
    store = CheckpointStore(bucket, keep_last=2)
    store.place.check_writable()
    assert store.load() is None
    # Above the size from which an upload has several parts.
    large = {"weight": torch.randn(15 << 18), "bias": torch.randn(3)}
    for step in (10, 20, 30):
        best = {"step": step, "metric": "kl", "value": 1 / step} if step == 10 else None
        store.save(step, large if step == 30 else some_tensors(step), {"step": step}, best=best)
    assert store.finish()[-1] == "s3://runs/night/checkpoint-30"
    another = CheckpointStore(bucket, keep_last=2)
    loaded = another.load()
    assert loaded is not None
    assert (loaded.step, loaded.metadata) == (30, {"step": 30})
    assert_same(loaded.tensors, large)
    assert (another.best() or {})["checkpoint"] == "checkpoint-10"
    another.save(40, some_tensors(), {}, background=False)
    assert another.place.steps() == [10, 30, 40]
    assert len(content(another.place)) == 7, "two files each, and best.json"


def test_a_bucket_that_is_not_there_is_refused_before_the_first_step_and_not_made(bucket: str) -> None:
    import s3fs

    with pytest.raises(ConfigurationError, match=r"checkpoint_dir 's3://mistyped/night' cannot be written"):
        CheckpointStore("s3://mistyped/night").place.check_writable()
    assert bucket == "s3://runs/night"
    assert s3fs.S3FileSystem().ls("") == ["runs"]


def test_an_upload_that_fails_half_way_leaves_nothing_in_the_bucket(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    store = CheckpointStore(bucket)
    store.save(1, some_tensors(), {}, background=False)
    calls = 0
    real = s3fs.core.S3File._upload_chunk

    def fail_later(file: Any, final: bool = False) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ConnectionResetError("the network is gone")
        return real(file, final=final)

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.core.S3File, "_upload_chunk", fail_later)
        store.save(2, {"weight": torch.zeros(60 << 18)}, {})
        with pytest.raises(CheckpointError, match="the network is gone"):
            store.finish()
    assert calls > 1
    assert len(content(store.place)) == 2
    assert store.place.steps() == [1]
    pending = s3fs.S3FileSystem().call_s3("list_multipart_uploads", Bucket="runs").get("Uploads", [])
    assert pending == []
