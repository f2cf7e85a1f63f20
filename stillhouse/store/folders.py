"""Where a store may be made, and a folder that is made whole or not at all: filled beside its place, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from stillhouse.errors import StoreError
from stillhouse.store.files import ASIDE, CAPTURE, MANIFEST, PARTIAL, flush_folder, local_folder, writing

MARK: Final = ".stillhouse-unfinished"
"""A file in a folder that is being filled: it is ours, and locked by the process that fills it."""


@contextmanager
def new_folder(place: Path | str) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place's name when all went well and is removed otherwise.

    What a process that was killed has left of it is removed first.

    Raises:
        StoreError: the place is taken, is being filled by another process, or cannot be written.
    """
    whole = local_folder(place).absolute()
    aside = whole.with_name(whole.name + ASIDE)
    with writing(whole):
        if whole.exists() and any(whole.iterdir()):
            raise StoreError(f"{place} is there already, and is not empty: name a new folder")
        if aside.exists() and not (aside / MARK).exists():
            raise StoreError(f"{aside} is in the way, and nothing of a store's: move it, or name another folder")
        aside.mkdir(parents=True, exist_ok=True)
    lock = FileLock(aside / MARK, timeout=0)
    with writing(aside):
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(f"{place} is being made by another process; wait for it, or stop it") from None
    try:
        with writing(aside):
            for path in aside.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != MARK:
                    path.unlink()
        yield aside
        with writing(whole):
            if whole.exists():
                whole.rmdir()
            (aside / MARK).unlink()
            aside.rename(whole)
            flush_folder(whole.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        with suppress(OSError):
            lock.release()


def check_place(folder: Path) -> None:
    """See that a store can be begun in a folder, or was.

    Raises:
        StoreError: it is an address, a file, or a folder with something else in it.
    """
    place = local_folder(folder)
    with writing(place):
        names = {path.name for path in place.iterdir()} if place.exists() else set()
    if not names & {CAPTURE, MANIFEST} and names - {PARTIAL, CAPTURE + ASIDE}:
        raise StoreError(
            f"{folder} is not empty and no store: it holds {', '.join(sorted(names)[:3])}; name a new folder"
        )
