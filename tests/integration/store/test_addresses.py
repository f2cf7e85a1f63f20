"""A store is read from any address that fsspec opens as it is from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from stillhouse.codec import encode_payload
from stillhouse.encodings import Hidden, Sampled
from stillhouse.errors import StoreError
from stillhouse.store import open_store
from stillhouse.store.derive import derive
from stillhouse.store.merge import merge
from stillhouse.store.verify import verify
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, folder_bytes, make_store, small_corpus

TEACHER = RandomTeacher(VOCABULARY)


@pytest.fixture(params=["memory", "local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place: memory, files as fsspec reaches them, a bucket."""
    match request.param:
        case "memory":
            yield f"memory://{tmp_path.name}"
            with suppress(FileNotFoundError):
                fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)
        case "local":
            yield f"local://{tmp_path}/remote"
        case _:
            yield request.getfixturevalue("bucket")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("stores")
    yield "s3://stores/here"
    files.rm("stores", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def put(folder: Path, address: str) -> None:
    files, root = fsspec.url_to_fs(address)
    for name, data in folder_bytes(folder).items():
        files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        files.pipe_file(f"{root}/{name}", data)


def test_a_store_at_an_address_answers_as_the_folder_does(root: str, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus")
    make_store(tmp_path / "store", corpus, Hidden("float32"), teacher=TEACHER)
    put(tmp_path / "store", f"{root}/store")
    here, there = open_store(tmp_path / "store"), open_store(f"{root}/store")
    assert there.manifest == here.manifest
    assert there.tokens == here.tokens
    for index in (32, 0, 17, 3):
        assert encode_payload(there[index].payload) == encode_payload(here[index].payload)
    found = verify(f"{root}/store", teacher=TEACHER, num_samples=5)
    assert (found.samples, found.faults) == (38, [])
    derive(there, tmp_path / "derived", Sampled(8))
    derive(here, tmp_path / "derived here", Sampled(8))
    assert folder_bytes(tmp_path / "derived") == folder_bytes(tmp_path / "derived here")


def test_shares_at_addresses_merge(root: str, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus")
    make_store(tmp_path / "whole", corpus)
    for index in range(2):
        make_store(tmp_path / f"{index}", corpus, share=(index, 2))
        put(tmp_path / f"{index}", f"{root}/{index}")
    merge([f"{root}/0", f"{root}/1"], tmp_path / "merged")
    assert folder_bytes(tmp_path / "merged") == folder_bytes(tmp_path / "whole")


def test_what_is_not_there_is_named(root: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*nowhere: no such folder"):
        open_store(f"{root}/nowhere")
    corpus = small_corpus(tmp_path / "corpus")
    make_store(tmp_path / "store", corpus)
    (tmp_path / "store" / "train" / "000002.parquet").unlink()
    put(tmp_path / "store", f"{root}/store")
    store = open_store(f"{root}/store")
    with pytest.raises(StoreError, match=r"train/000002.parquet cannot be read: it is missing"):
        store[9]
    assert store[5].payload.num_positions == 16


def test_an_unknown_protocol_and_a_secret_in_an_address_are_handled_with_care() -> None:
    with pytest.raises(StoreError, match=r"the store 'nfs4://host/store' cannot be opened") as raised:
        open_store("nfs4://me:secret@host/store")
    assert "secret" not in str(raised.value)
