"""What every release has written is read by this one, to the bit; what none of them wrote is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import decode_payload
from stillhouse.errors import CheckpointError, CodecError
from stillhouse.fingerprint import fingerprint
from stillhouse.messages import description_from_proto, request_from_proto
from stillhouse.request import LogitsRequest
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from student_worker.checkpoints import CheckpointStore
from tests.golden import make
from tests.integration.conftest import ServeTeacher
from tests.unit.codec.examples import EXAMPLES
from tests.unit.codec.test_round_trip import assert_same_bits

RELEASES = sorted(path.parent for path in make.HERE.glob("*/answers.json"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def written(release: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((release / "answers.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def cache(valkey: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
        yield client
        client.flushall()


def test_there_is_something_to_hold_on_to() -> None:
    assert RELEASES


def test_payloads_are_read(written: dict[str, Any]) -> None:
    for name, text in written["payloads"].items():
        assert_same_bits(decode_payload(bytes.fromhex(text)), EXAMPLES[name])


def test_an_earlier_clients_requests_mean_what_they_meant(written: dict[str, Any]) -> None:
    for name, text in written["requests"].items():
        message = pb.LogitsRequest.FromString(bytes.fromhex(text))
        assert request_from_proto(message) == LogitsRequest((make.SEQUENCE,), make.ASKED[name])


def test_an_earlier_teachers_description_is_understood(written: dict[str, Any]) -> None:
    message = pb.GetTeacherResponse.FromString(bytes.fromhex(written["description"]))
    description = description_from_proto(message)
    assert (description.model, description.vocabulary_size) == ("fixture", make.VOCABULARY_SIZE)


async def test_an_earlier_cache_answers(
    serve_teacher: ServeTeacher, cache: redis.Redis, valkey: str, written: dict[str, Any]
) -> None:
    for key, value in written["cache"].items():
        cache.set(bytes.fromhex(key), bytes.fromhex(value))
    async with (
        serve_teacher(valkey, fixture_vocabulary_size=make.VOCABULARY_SIZE) as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        for encoding in make.ASKED.values():
            answer = await client.answer(LogitsRequest((make.SEQUENCE,), encoding))
            assert answer.cache_hits == 1, encoding


async def test_a_cache_of_an_unknown_format_is_computed_anew(
    serve_teacher: ServeTeacher, cache: redis.Redis, valkey: str, written: dict[str, Any]
) -> None:
    for key, value in written["cache"].items():
        data = bytearray(bytes.fromhex(value))
        data[4] = 99
        cache.set(bytes.fromhex(key), bytes(data))
    async with (
        serve_teacher(valkey, fixture_vocabulary_size=make.VOCABULARY_SIZE) as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        for encoding in make.ASKED.values():
            answer = await client.answer(LogitsRequest((make.SEQUENCE,), encoding))
            assert answer.cache_hits == 0
            answer = await client.answer(LogitsRequest((make.SEQUENCE,), encoding))
            assert answer.cache_hits == 1


def test_a_payload_of_an_unknown_format_is_refused_by_name(written: dict[str, Any]) -> None:
    for version in (1, 99):
        for text in written["payloads"].values():
            data = bytearray(bytes.fromhex(text))
            data[4] = version
            with pytest.raises(CodecError, match=f"payload format {version} is not known here"):
                decode_payload(bytes(data))


def test_a_checkpoint_is_resumed_from(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path, dirs_exist_ok=True)
    checkpoint = CheckpointStore(tmp_path).load()
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.metadata) == (make.STEP, make.METADATA)
    for name, tensor in make.tensors().items():
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_a_checkpoint_of_an_unknown_format_is_refused_by_name(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"checkpoint-{make.STEP}" / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["checksum"]
    content["version"] = 99
    content["checksum"] = fingerprint(json.dumps(content, sort_keys=True))
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"version 99; this release reads stillhouse.checkpoint version 1"):
        CheckpointStore(tmp_path).load()
