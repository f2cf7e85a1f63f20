"""A model larger than one device answers as it does on one: spread by layers, or split over processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stillhouse.errors import ConfigurationError
from stillhouse.request import All, Sequence
from teacher_service.backends import open_backend
from teacher_service.settings import TeacherSettings, load_settings

IDS = (5, 9, 200, 31, 7, 7, 18)
SEQUENCES = (Sequence(IDS, (), All()), Sequence(IDS * 3, (7, 14), All()), Sequence((4,), (), All()))


def _settings(folder: Path, **chosen: object) -> TeacherSettings:
    return load_settings({"model": str(folder), **chosen}, {})


def test_a_model_spread_by_layers_answers_as_one_that_is_not(tiny_llama_folder: Path) -> None:
    plain = open_backend(_settings(tiny_llama_folder))
    spread = open_backend(_settings(tiny_llama_folder, device_map='{"": "cpu"}'))
    assert spread.describe() == plain.describe()
    for ours, theirs in zip(spread.forward(SEQUENCES).rows, plain.forward(SEQUENCES).rows, strict=True):
        torch.testing.assert_close(spread.head(ours), plain.head(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["cpu", "disk"])
def test_a_model_that_lies_partly_on_disk_answers_as_one_that_does_not(head: str, tiny_llama_folder: Path) -> None:
    plain = open_backend(_settings(tiny_llama_folder))
    parts = {"model.embed_tokens": head, "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "disk"}
    parts |= {"model.rotary_emb": "cpu", "lm_head": head}
    spread = open_backend(_settings(tiny_llama_folder, device_map=json.dumps(parts)))
    assert spread.describe().weights_fingerprint == plain.describe().weights_fingerprint
    assert spread.output_head() is not None
    for ours, theirs in zip(spread.forward(SEQUENCES).rows, plain.forward(SEQUENCES).rows, strict=True):
        torch.testing.assert_close(spread.head(ours), plain.head(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, "device_map and device both say where"),
        ({"tp_plan": "auto", "device_map": "auto"}, "device_map and tp_plan both say where"),
        ({"tp_plan": "auto"}, "this process is alone: start the service with `torchrun"),
        ({"device_map": "somehow"}, "device_map must be auto, balanced, .* got 'somehow'"),
        ({"device_map": "[]"}, "device_map must be auto"),
        ({"device_map": '{"": null}'}, "device_map must name a device that is here, .* got None for ''"),
        ({"device_map": '{"lm_head": true}'}, "device_map must name a device .* got True for 'lm_head'"),
        ({"device_map": '{"": "nonsense"}'}, "device_map must name a device .* got 'nonsense'"),
        ({"device_map": '{"": "cuda:77"}'}, "device_map must name a device .* got 'cuda:77'"),
        ({"device_map": '{"": 77}'}, "device_map must name a device .* got 77"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    chosen: dict[str, str], message: str, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigurationError, match=message):
        open_backend(_settings(tiny_llama_folder, **chosen))


_RANK = """
import json, os, sys, torch
from stillhouse.request import All, Sequence
from teacher_service.backends import open_backend
from teacher_service.settings import load_settings
torch.set_num_threads(1)
backend = open_backend(load_settings({"model": sys.argv[1], "tp_plan": "auto"}, {}))
if int(os.environ["RANK"]):
    backend.follow()
else:
    ids = tuple(json.loads(sys.argv[2]))
    sequences = [Sequence(ids, (), All()), Sequence(ids * 3, (7, 14), All()), Sequence((4,), (), All())]
    logits = [backend.head(rows).tolist() for rows in backend.forward(sequences).rows]
    again = [backend.head(rows).tolist() for rows in backend.forward(sequences).rows]
    head = backend.output_head()
    described = backend.describe()
    print(json.dumps({"logits": logits, "again": again == logits, "head": list(head.weight.shape),
        "weights": described.weights_fingerprint, "device": described.device_kind}), flush=True)
    os._exit(0)  # the other is then alone, as after a crash
"""


def test_a_model_split_over_processes_answers_as_one_that_is_not(tiny_llama_folder: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(tiny_llama_folder), json.dumps(IDS)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        out, err = ranks[0].communicate(timeout=120)
        assert ranks[0].returncode == 0, err.decode()[-3000:]
        # A follower ends by itself when the leader is gone.
        _, err = ranks[1].communicate(timeout=60)
        assert ranks[1].returncode == 0, err.decode()[-3000:]
    finally:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    answer = json.loads(out)
    plain = open_backend(_settings(tiny_llama_folder))
    for ours, rows in zip(answer["logits"], plain.forward(SEQUENCES).rows, strict=True):
        torch.testing.assert_close(torch.tensor(ours), plain.head(rows), atol=1e-4, rtol=0)
    assert answer["again"]
    assert answer["head"] == [300, 32]
    assert answer["weights"] == plain.describe().weights_fingerprint
    assert answer["device"] == "cpu x 2"
