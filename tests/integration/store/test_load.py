"""A service whose Redis was filled from a store answers from it, to the byte, and computes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from stillhouse import TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError, StoreError
from stillhouse.request import LogitsRequest
from stillhouse.store import StorePlan, StoreWriter, open_store
from stillhouse.store.derive import derive
from stillhouse.store.load import load
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.conftest import ServeTeacher
from tests.unit.store.small_store import VOCABULARY, fill, make_store, small_corpus


def capture(folder: Path, corpus: tuple[Prepared, DataSpec], address: str, encoding: Encoding) -> None:
    """Fill a store from a live service, as `stillhouse capture` does."""
    with TeacherClient(address) as teacher:
        plan = StorePlan.of(*corpus, teacher.describe(), encoding=encoding, temperature=2.0, samples_per_shard=8)
        head = teacher.output_head() if isinstance(encoding, Hidden) else None
        with StoreWriter(folder, plan, output_head=head) as writer:
            fill(writer, corpus, teacher)
            writer.finish()


@pytest.mark.parametrize(
    "encoding", [Sampled(8), TopK(4), Hidden(), Dense("float16"), Candidates((1, 3))], ids=lambda e: type(e).__name__
)
async def test_a_warm_service_computes_no_token(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess, tmp_path: Path, encoding: Encoding
) -> None:
    corpus = small_corpus(tmp_path / "corpus")
    async with serve_teacher(fixture_vocabulary_size=VOCABULARY) as service:
        address = f"127.0.0.1:{service.grpc_port}"
        await asyncio.to_thread(capture, tmp_path / "store", corpus, address, encoding)
    loaded = await asyncio.to_thread(load, tmp_path / "store", own_valkey.url)
    assert (loaded.answers, loaded.too_large) == (38, 0)
    store = open_store(tmp_path / "store")
    rows = list(store)
    request = LogitsRequest(tuple(row.sequence for row in rows), encoding, temperature=2.0)
    async with serve_teacher(own_valkey.url, fixture_vocabulary_size=VOCABULARY) as service:
        with TeacherClient(f"127.0.0.1:{service.grpc_port}") as teacher:
            answer = await asyncio.to_thread(teacher.answer, request)
        computed = service.metrics.forward_tokens._value.get()
    assert (answer.cache_hits, computed) == (33, 0)
    assert [encode_payload(one) for one in answer.payloads] == [encode_payload(row.payload) for row in rows]


def test_what_redis_holds_is_what_a_service_writes(own_valkey: ValkeyProcess, tmp_path: Path) -> None:
    make_store(tmp_path / "store", small_corpus(tmp_path / "corpus"))
    shown: list[tuple[int, int]] = []
    loaded = load(tmp_path / "store", own_valkey.url, ttl_seconds=100, progress=lambda *counts: shown.append(counts))
    with redis.Redis.from_url(own_valkey.url) as connection:
        assert connection.dbsize() == loaded.answers == 38
        for key in connection.scan_iter():
            value = connection.get(key)
            assert isinstance(value, bytes)
            assert value.endswith(key)
            assert 0 < connection.ttl(key) <= 100
    assert shown[-1] == (38, 38)


def test_a_redis_that_is_away_full_or_none_is_named(own_valkey: ValkeyProcess, tmp_path: Path) -> None:
    make_store(tmp_path / "store", small_corpus(tmp_path / "corpus"))
    with pytest.raises(ConfigurationError, match="redis_url is no URL of Redis"):
        load(tmp_path / "store", "http://user:secret@localhost")
    with redis.Redis.from_url(own_valkey.url) as connection:
        connection.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match=r"Redis took 0 of 38 answers and then none: .*memory"):
            load(tmp_path / "store", own_valkey.url)
    own_valkey.stop()
    with pytest.raises(StoreError, match="Redis took 0 of 38 answers"):
        load(tmp_path / "store", own_valkey.url)


def test_answers_that_are_not_the_teachers_own_are_not_passed_off_as_such(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    make_store(tmp_path / "store", small_corpus(tmp_path / "corpus"), Hidden())
    derive(tmp_path / "store", tmp_path / "derived", TopK(4))
    with pytest.raises(StoreError, match="derived from hidden:bf16 answers: a service must not pass these off"):
        load(tmp_path / "derived", own_valkey.url)
