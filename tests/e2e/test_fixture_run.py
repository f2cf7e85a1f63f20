"""A whole run with no model on either side: the fixture student learns from the fixture teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trustme

from tests import forked
from tests.e2e.conftest import RUN_SECONDS, serving


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    # Mostly one token, so that a student with one row of logits has something to learn.
    ids = np.random.default_rng(0).choice(256, 4000, p=[0.745, *[0.001] * 255])
    ids.astype("<u4").tofile(folder / "a.bin")
    return folder


def train(
    address: str, data: Path, output: Path, *flags: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "student_worker", "train", "--teacher", address, "--student", "fixture"]
    argv += ["--data", str(data), "--block-size", "32", "--held-out-samples", "4", "--max-steps", "10"]
    argv += ["--global-batch-size", "4", "--learning-rate", "0.5", "--output-dir", str(output), "--http-port", "0"]
    variables = {**os.environ, "XDG_CACHE_HOME": str(output.parent / "cache"), **environment}
    return forked.run([*argv, *flags], env=variables, timeout=RUN_SECONDS)


def test_the_fixture_student_learns_through_the_service(shards: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--backend", "fixture") as addresses:
        done = train(addresses["grpc"], shards, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        text = tmp_path / "text.txt"
        text.write_text("words that need a tokenizer")
        refused = train(addresses["grpc"], text, tmp_path / "other")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert refused.returncode == 2
    assert "tokenizer" in refused.stderr


@pytest.mark.parametrize("door", ["grpc", "http"])
def test_a_worker_with_a_certificate_and_a_token_learns_over_mutual_tls(
    shards: Path, tmp_path: Path, door: str
) -> None:
    authority, token = trustme.CA(), "right-token-0123456789"
    (tmp_path / "tokens").write_text(f"trainer {token}\n")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    for name in ("localhost", "trainer"):
        leaf = authority.issue_cert(name)
        leaf.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.crt"))
        leaf.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    files = {name: str(tmp_path / name) for name in ("ca.crt", "localhost.crt", "localhost.key", "tokens")}
    flags = ("--tls-certificate", files["localhost.crt"], "--tls-key", files["localhost.key"], "--plain-port", "0")
    access = ("--tls-client-ca", files["ca.crt"], "--tokens-file", files["tokens"], "--backend", "fixture")
    shown = ("--teacher-certificate", str(tmp_path / "trainer.crt"), "--teacher-key", str(tmp_path / "trainer.key"))
    with serving(tmp_path, *flags, *access) as addresses:
        address = addresses[door].replace("127.0.0.1", "localhost")
        done = train(
            address, shards, tmp_path / "run", "--teacher-ca", files["ca.crt"], *shown, STUDENT_TEACHER_TOKEN=token
        )
        assert done.returncode == 0, done.stderr
        refused = train(address, shards, tmp_path / "other", "--teacher-ca", files["ca.crt"], *shown)
        assert refused.returncode != 0
        assert "a token is needed" in refused.stderr
