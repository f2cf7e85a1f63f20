"""The output head over HTTP: hidden states are of use to whoever has safetensors and numpy, and nothing of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from stillhouse.fixtures import LARGEST_HEAD
from stillhouse.payloads import OutputHead
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.http_door.head_file import HeadFile
from tests.integration.http.speaking import PROBLEM, ServeTeacher, http_to


class HeadedBackend(FixtureBackend):
    """Has a head with everything that a head can have."""

    head_of_all = OutputHead(torch.randn(256, 1), torch.randn(256), scale=0.0625, soft_cap=30.0)

    def output_head(self) -> OutputHead | None:
        return self.head_of_all


async def test_logits_are_rebuilt_with_numpy_alone(serve_teacher: ServeTeacher, tiny_llama_folder: Path) -> None:
    async with (
        serve_teacher(backend="transformers", model=str(tiny_llama_folder)) as service,
        http_to(service) as http,
    ):
        file = (await http.get("/v1/output-head", params={"value_type": "float32"})).content
        sequences = [{"token_ids": [5, 3, 8], "positions": "all"}]
        hidden = (
            await http.post(
                "/v1/logits",
                json={"sequences": sequences, "encoding": {"kind": "hidden", "value_type": "float32"}},
            )
        ).json()["payloads"][0]["hidden"]
        dense = (await http.post("/v1/logits", json={"sequences": sequences})).json()["payloads"][0]["logits"]

    head = safetensors.numpy.load(file)
    about = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]
    logits = np.asarray(hidden, np.float32) @ head["weight"].T
    logits = (logits + head.get("bias", 0)) * float(about["scale"])
    if "soft_cap" in about:
        logits = float(about["soft_cap"]) * np.tanh(logits / float(about["soft_cap"]))
    np.testing.assert_allclose(logits, np.asarray(dense, np.float32), atol=1e-3)


async def test_bias_scale_and_soft_cap_come_along(serve_teacher: ServeTeacher) -> None:
    backend = HeadedBackend(256)
    async with serve_teacher(given=backend) as service, http_to(service) as http:
        response, alone = await http.get("/v1/output-head"), await http.head("/v1/output-head")
        assert (alone.headers["content-length"], alone.content) == (response.headers["content-length"], b"")
        fingerprint = service.lifecycle.teacher.description.fingerprint
    assert response.headers["content-length"] == str(len(response.content))
    assert response.headers["stillhouse-fingerprint"] == fingerprint
    head = safetensors.torch.load(response.content)
    assert torch.equal(head["weight"], backend.head_of_all.weight)
    assert backend.head_of_all.bias is not None
    assert torch.equal(head["bias"], backend.head_of_all.bias)
    about = json.loads(response.content[8 : 8 + int.from_bytes(response.content[:8], "little")])["__metadata__"]
    assert about == {"fingerprint": fingerprint, "scale": "0.0625", "soft_cap": "30.0"}


async def test_a_head_that_cannot_be_had_is_a_problem(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(fixture_vocabulary_size=LARGEST_HEAD + 1) as service, http_to(service) as http:
        assert (await http.get("/v1/output-head")).status_code == 501
    async with serve_teacher(given=HeadedBackend(256)) as service, http_to(service) as http:
        for query, status in ({"value_type": "float16"}, 400), ({"expected_fingerprint": "x"}, 412):
            response = await http.get("/v1/output-head", params=query)
            assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM)


@pytest.mark.parametrize("rows", [1, 300_001])
def test_a_file_is_written_in_pieces_and_reads_as_it_was(rows: int) -> None:
    weight = torch.randn(rows, 5, dtype=torch.bfloat16)
    file = HeadFile(OutputHead(weight), "bfloat16", "f")
    parts = [bytes(part) for part in file.parts()]
    assert max(map(len, parts)) <= 2**20
    assert len(b"".join(parts)) == file.num_bytes
    assert torch.equal(safetensors.torch.load(b"".join(parts))["weight"], weight)
