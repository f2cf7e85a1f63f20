"""The real SmolLM2 captured through kills, and in parts: byte for byte the capture that nobody disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse import open_store
from stillhouse.store.merge import merge
from stillhouse.store.verify import verify
from tests.e2e.capture_run import CaptureRun, files, kill_at_random
from tests.torture.mix import COUNT
from tests.torture.service_process import ServiceProcess, serving

LIMIT_SECONDS = 3000 * max(1, round(COUNT))
CHARACTERS = 80_000
"""About 20,000 tokens: minutes on two cores. A count of 5.2 takes 100,000."""
KILLS = 5


@pytest.fixture(scope="module")
def real_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """SmolLM2 in deterministic mode, with no cache: what is asked again is computed again."""
    with serving(tmp_path_factory.mktemp("smollm2"), Path("smollm2"), "--mode", "deterministic") as service:
        yield service


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of real text: the help texts of Python, or as much of them as the tests' count lets."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("real-corpus")
    text = "\n\n\n".join(topics[name] for name in sorted(topics))[: max(12_000, int(COUNT * CHARACTERS))]
    (folder / "topics.txt").write_text(text, encoding="utf-8")
    flags = ["--data", str(folder / "topics.txt"), r"--text-separator=\n\n\n", "--block-size", "128"]
    return [*flags, "--held-out-samples", "4", "--samples-per-shard", "16", "--cache-dir", str(folder / "cache")]


@pytest.mark.long
@pytest.mark.real_weights
@pytest.mark.timeout(LIMIT_SECONDS)
def test_kills_and_parts_change_no_byte_of_a_real_capture(
    real_service: ServiceProcess, corpus: list[str], tmp_path: Path
) -> None:
    flags = ("--teacher", real_service.grpc, *corpus, "--max-request-tokens", "512")
    unbroken = CaptureRun(tmp_path / "unbroken", *flags)
    assert unbroken.run() == 0, unbroken.said()
    found = files(unbroken.output)

    killed = CaptureRun(tmp_path / "killed", *flags)
    # A short capture may be done before the last of them.
    assert kill_at_random(killed, KILLS, sum(map(len, found.values())), seed=5) >= (KILLS if COUNT >= 1 else 3)
    assert killed.run() == 0, killed.said()
    assert files(killed.output) == found

    parts = [CaptureRun(tmp_path / f"part-{i}", *flags, "--part", f"{i}/3") for i in range(3)]
    assert [part.run() for part in parts] == [0, 0, 0]
    merge([part.output for part in reversed(parts)], tmp_path / "whole")
    assert files(tmp_path / "whole") == found

    for folder in (killed.output, tmp_path / "whole"):
        assert verify(folder).faults == []
    store = open_store(unbroken.output)
    assert store.manifest.plan.encoding == "sampled:50:0"
    assert len(store.train) >= 16
    store.close()
