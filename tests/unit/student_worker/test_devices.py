"""Which GPU a worker takes: of its own, never the teacher's, and told apart by UUID."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stillhouse.errors import ConfigurationError
from student_worker.devices import (
    VISIBLE_VARIABLE,
    Gpu,
    list_gpus,
    parse_listing,
    reserved_gpus,
    take_gpu,
    visible_gpus,
)
from student_worker.locks import Lock

FOUR = [Gpu(f"GPU-{letter * 8}-0000", "NVIDIA H100", index) for index, letter in enumerate("abcd")]

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-2c4e7f60-9f0a-4d53-8bb6-0d1f1f6f2a11)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-7f3c1e2d-8b6a-4c9e-9d2f-5a4b3c2d1e0f)
  MIG 1g.5gb      Device  0: (UUID: MIG-5e1c6a3f-1111-5a1c-8d61-0123456789ab)
  MIG 2g.10gb     Device  1: (UUID: MIG-5e1c6a3f-2222-5a1c-8d61-0123456789ab)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-99999999-9f0a-4d53-8bb6-0d1f1f6f2a11)
"""


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_VARIABLE, "set, so that monkeypatch puts it back")
    monkeypatch.delenv(VISIBLE_VARIABLE)


@pytest.fixture
def take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Gpu, Lock]]:
    """Takes a GPU as a worker of its own would, whose environment the next one does not see."""

    def one(
        gpus: Sequence[Gpu] = tuple(FOUR), *, reserved: Sequence[str] = (), share: bool = False
    ) -> tuple[Gpu, Lock]:
        monkeypatch.delenv(VISIBLE_VARIABLE, raising=False)
        taken = take_gpu(tmp_path / "locks", reserved=reserved, share=share, gpus=lambda: gpus, wait_seconds=0)
        assert taken is not None
        return taken

    return one


def test_each_worker_has_a_gpu_of_its_own_and_sees_no_other(take: Callable[..., tuple[Gpu, Lock]]) -> None:
    seen, held = [], []
    for _ in FOUR:
        gpu, lock = take()
        held.append(lock)
        seen.append(gpu)
        assert os.environ[VISIBLE_VARIABLE] == gpu.uuid
    assert seen == FOUR
    with pytest.raises(ConfigurationError, match=r"no GPU is free .* of 4 here, other workers hold 4 .*share_devices"):
        take()
    held[2].release()
    assert take()[0] == FOUR[2]


def test_the_teachers_gpus_are_never_taken_whether_or_not_it_runs(take: Callable[..., tuple[Gpu, Lock]]) -> None:
    held = [take(reserved=[FOUR[0].uuid, "GPU-cccc"]) for _ in range(2)]
    assert [gpu for gpu, _ in held] == [FOUR[1], FOUR[3]]
    with pytest.raises(ConfigurationError, match=r"of 4 here, 2 reserved \(GPU-aaaaaaaa-0000, GPU-cccccccc-0000\)"):
        take(reserved=[FOUR[0].uuid, "GPU-cccc"])


def test_a_host_whose_only_gpu_is_the_teachers_says_what_to_do(take: Callable[..., tuple[Gpu, Lock]]) -> None:
    with pytest.raises(ConfigurationError, match=r"of 1 here, 1 reserved .* hold 0 .* share_devices"):
        take(FOUR[:1], reserved=["0"])


def test_sharing_takes_the_gpu_with_the_fewest_workers(take: Callable[..., tuple[Gpu, Lock]]) -> None:
    held = [take(FOUR[:2], share=True) for _ in range(5)]
    assert [gpu.index for gpu, _ in held] == [0, 1, 0, 1, 0]
    held[1][1].release()
    assert take(FOUR[:2], share=True)[0].index == 1


def test_a_worker_waits_a_little_for_one_that_is_just_leaving(
    take: Callable[..., tuple[Gpu, Lock]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lock = take(FOUR[:1])
    monkeypatch.delenv(VISIBLE_VARIABLE)
    monkeypatch.setattr("student_worker.devices.time.sleep", lambda _: lock.release())
    taken = take_gpu(tmp_path / "locks", gpus=lambda: FOUR[:1], wait_seconds=60)
    assert taken is not None
    assert taken[0] == FOUR[0]


def test_where_there_is_no_gpu_nothing_is_locked(tmp_path: Path) -> None:
    assert take_gpu(tmp_path / "locks", gpus=list) is None
    assert not (tmp_path / "locks").exists()


def test_what_cuda_may_not_see_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_VARIABLE, "2")
    taken = take_gpu(tmp_path, gpus=lambda: FOUR, wait_seconds=0)
    assert taken is not None
    assert taken[0] == FOUR[2]


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("1,0", [1, 0]),
        ("GPU-bbbb,3", [1, 3]),
        ("0,7,1", [0]),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(names: str | None, left: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(FOUR, names)] == left


def test_mig_parts_stand_in_for_the_gpu_that_they_split() -> None:
    gpus = parse_listing(LISTING)
    assert [(gpu.index, gpu.uuid.split("-")[0], gpu.uuid.split("-")[2]) for gpu in gpus] == [
        (0, "GPU", "9f0a"),
        (1, "MIG", "1111"),
        (1, "MIG", "2222"),
        (2, "GPU", "9f0a"),
    ]
    assert gpus[1].name == "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    assert reserved_gpus(gpus, ["1"]) == gpus[1:3]


@pytest.mark.parametrize("name", ["cuda:0", "all", "none", "GPU 0", ""])
def test_a_reserved_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="reserved_devices"):
        reserved_gpus(FOUR, [name])


def test_a_reserved_gpu_that_is_not_here_is_nobodys_concern() -> None:
    assert reserved_gpus(FOUR, ["GPU-ffffffff", "9"]) == []


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a driver's listing tool of a test's own first in the path."""

    def put(script: str) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")

    return put


def test_the_drivers_own_listing_is_read(driver: Callable[[str], None]) -> None:
    driver(f"cat <<'END'\n{LISTING}END")
    assert list_gpus() == parse_listing(LISTING)


def test_a_driver_that_fails_is_an_error_and_not_a_host_without_gpus(driver: Callable[[str], None]) -> None:
    driver("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with pytest.raises(ConfigurationError, match="version mismatch; mend the driver"):
        list_gpus()


def test_no_driver_and_a_driver_without_gpus_mean_no_gpus(
    driver: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver("echo 'No devices were found'; exit 6")
    assert list_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == []
