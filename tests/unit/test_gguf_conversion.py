"""A conversion happens once, whoever asks at the same time, and leaves a whole folder or none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stillhouse import gguf_conversion
from stillhouse.errors import ConfigurationError
from stillhouse.gguf_conversion import convert_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and so on")
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand in for the slow part, which the test of the real weights runs; what it was asked to write."""
    asked: list[Path] = []

    def convert(_: Path, target: Path) -> None:
        asked.append(target)
        target.mkdir()
        (target / "config.json").write_text("{}")
        time.sleep(0.05)  # long enough for the others to arrive

    monkeypatch.setattr(gguf_conversion, "_convert", convert)
    return asked


def test_the_second_time_nothing_is_converted(file: Path, tmp_path: Path, conversions: list[Path]) -> None:
    folder = convert_gguf(file, tmp_path)
    assert convert_gguf(file, tmp_path) == folder
    assert len(conversions) == 1


def test_a_copy_is_the_same_and_a_change_is_not(file: Path, tmp_path: Path, conversions: list[Path]) -> None:
    folder = convert_gguf(file, tmp_path)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert convert_gguf(copy, tmp_path) == folder
    copy.write_bytes(b"GGUF changed")
    assert convert_gguf(copy, tmp_path) != folder
    assert len(conversions) == 2


def test_of_several_at_once_one_converts(file: Path, tmp_path: Path, conversions: list[Path]) -> None:
    together = threading.Barrier(4)

    def ask() -> Path:
        together.wait()
        return convert_gguf(file, tmp_path)

    with ThreadPoolExecutor(4) as pool:
        folders = {future.result() for future in [pool.submit(ask) for _ in range(4)]}
    assert len(folders) == len(conversions) == 1


def test_what_a_killed_conversion_left_is_swept_away(file: Path, tmp_path: Path, conversions: list[Path]) -> None:
    folder = convert_gguf(file, tmp_path)
    left = conversions[0]
    folder.rename(left)
    (left / "half").write_text("written")
    assert convert_gguf(file, tmp_path) == folder
    assert not (folder / "half").exists()


def test_a_cache_that_cannot_be_written_is_one_clear_error(file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder is needed")
    with pytest.raises(ConfigurationError, match="cannot be converted into"):
        convert_gguf(file, blocked)


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF\n", b"GGUF" + b"\xff" * 64, b"GGUF\x03" + b"\0" * 40])
def test_a_damaged_file_is_refused_by_name_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"damaged\.gguf"):
        convert_gguf(file, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"]
