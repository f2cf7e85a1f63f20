"""A folder that is made whole or not at all: filled beside its place, flushed, and renamed into it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import StoreError
from stillhouse.store.files import ASIDE, flush_folder, writing


@contextmanager
def new_folder(place: Path | str) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place's name when all went well and is removed otherwise.

    What a process that was killed has left of it is removed first.

    Raises:
        StoreError: the place is taken, or cannot be written.
    """
    place = Path(place)
    aside = place.with_name(place.name + ASIDE)
    with writing(place):
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise StoreError(f"{place} is there already, and is not empty: name a new folder")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    try:
        yield aside
        with writing(place):
            if place.exists():
                place.rmdir()
            aside.rename(place)
            flush_folder(place.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
