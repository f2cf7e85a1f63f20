"""Every panel of the dashboard has data: a real Prometheus is asked, which scrapes a real teacher and two workers."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stillhouse.processes import Child
from tests.e2e.conftest import serving
from tests.torture.service_process import free_port

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "stillhouse.json"
SCRAPE_TOKEN, TEACHER_TOKEN = "scrape-token-0123456789", "teacher-token-0123456789"
SECONDS = 60.0

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="NOT TESTED: Prometheus is not installed"),
]


def panels() -> list[tuple[str, str]]:
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [(panel["title"], target["expr"]) for panel in content["panels"] for target in panel.get("targets", [])]


def query(prometheus: str, expression: str) -> list[Any]:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - on this machine
        return list(json.load(answer)["data"]["result"])


def _workers(stack: ExitStack, folder: Path, teacher: str) -> list[int]:
    shards = folder / "shards"
    shards.mkdir()
    np.random.default_rng(0).choice(256, 200_000).astype("<u4").tofile(shards / "a.bin")
    lighthouse, ports = free_port(), [free_port(), free_port()]
    environment = {
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "STUDENT_RUN_TOKEN": "run-token-0123456789",
        "STUDENT_TEACHER_TOKEN": TEACHER_TOKEN,
        "STUDENT_LIGHTHOUSE": f"127.0.0.1:{lighthouse}",
        "STUDENT_WORKER_INDEX_BY_LOCK": "true",
    }
    argv = [sys.executable, "-m", "student_worker", "lighthouse", "--port", str(lighthouse)]
    stack.enter_context(Child("lighthouse", argv, folder / "lighthouse.log", {}))
    keys = {"block-size": 32, "held-out-samples": 4, "max-steps": 100_000, "global-batch-size": 4, "save-steps": 50}
    keys |= {"eval-steps": 20, "micro-shards": 2}
    argv = [sys.executable, "-m", "student_worker", "train", "--teacher", teacher, "--student", "fixture"]
    argv += ["--data", str(shards), "--output-dir", str(folder / "run")]
    argv += ["--learning-rate=0.1", *(f"--{name}={value}" for name, value in keys.items())]
    for number, port in enumerate(ports):
        child = [*argv, f"--http-port={port}"]
        stack.enter_context(Child(f"worker-{number}", child, folder / f"worker-{number}.log", environment))
    return ports


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus with our own rules, scraping every second instead of every five."""
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "tokens").write_text(f"workers {TEACHER_TOKEN}\nprometheus {SCRAPE_TOKEN} metrics\n", encoding="utf-8")
    (folder / "scrape-token").write_text(SCRAPE_TOKEN, encoding="utf-8")
    (folder / "tokens").chmod(0o600)
    flags = ("--backend", "fixture", "--tokens-file", str(folder / "tokens"))
    with ExitStack() as stack:
        addresses = stack.enter_context(serving(folder, *flags))
        ports = _workers(stack, folder, addresses["grpc"])
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus/rules/*.yml")]
        targets = {"teacher": [addresses["http"].removeprefix("http://")], "student": [f"127.0.0.1:{p}" for p in ports]}
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            if "authorization" in job:
                job["authorization"]["credentials_file"] = str(folder / "scrape-token")
            job["static_configs"] = [{"targets": targets.get(job["job_name"], [])}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        address = f"127.0.0.1:{free_port()}"
        argv = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
        argv += [f"--storage.tsdb.path={folder / 'data'}"]
        stack.enter_context(Child("prometheus", argv, folder / "prometheus.log", dict(os.environ)))
        yield f"http://{address}"


def test_every_panel_has_data(prometheus: str) -> None:
    missing = panels()
    assert len(missing) > 30
    deadline = time.monotonic() + SECONDS
    while missing and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            missing = [(title, asked) for title, asked in missing if not _has_data(prometheus, asked)]
        except OSError:
            continue  # it is not up yet
    assert missing == []
    assert len(query(prometheus, 'up{job="student"} == 1')) == 2
    assert float(query(prometheus, "max(student_world_size)")[0]["value"][1]) in (1, 2)
    # All is well, and says so.
    assert query(prometheus, 'ALERTS{alertstate="firing"}') == []


def _has_data(prometheus: str, asked: str) -> bool:
    return any(one["value"][1] != "NaN" for one in query(prometheus, asked))
