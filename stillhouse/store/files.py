"""The files of a store, in a folder or at any address that fsspec can open; every fault of theirs a `StoreError`.

What is written is written aside, flushed, and renamed, so that a file is there whole or not at all.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit, urlunsplit

from stillhouse.errors import StoreError

MANIFEST: Final = "manifest.json"
CAPTURE: Final = "capture.json"
TOKENS: Final = "tokens.parquet"
OUTPUT_HEAD: Final = "output_head.safetensors"
PARTIAL: Final = "partial"

ASIDE: Final = ".partial"
"""The ending of a file that is being written."""


class StoreFiles:
    """The files below a folder or an address, to be read.

    Raises:
        StoreError: a protocol that is unknown, or whose package is not installed.
    """

    def __init__(self, address: str | Path, options: dict[str, Any] | None = None) -> None:
        self._options = options or {}
        text = os.fspath(address)
        self.name = without_secrets(text)
        self.folder: Path | None = Path(text.removeprefix("file://")) if _is_local(text) else None
        self._files: Any = None
        self._root = ""
        if self.folder is None:
            self._files, self._root = self._connect(text)

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        with self._reading(name):
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
            return data

    def size(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be asked for.
        """
        with self._reading(name):
            if self.folder is not None:
                return (self.folder / name).stat().st_size
            return int(self._files.info(f"{self._root}/{name}")["size"])

    def source(self, name: str) -> Path | BinaryIO:
        """Return what Parquet is read from: a path that can be mapped, or an open file.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be opened.
        """
        if self.folder is not None:
            return self.folder / name
        with self._reading(name):
            # Parquet asks for what it needs: reading ahead of it would fetch what nobody wants.
            file: BinaryIO = self._files.open(f"{self._root}/{name}", "rb", cache_type="none")
            return file

    def open(self, name: str) -> BinaryIO:
        """Open a file that is read from its beginning to its end.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be opened.
        """
        with self._reading(name):
            if self.folder is not None:
                return (self.folder / name).open("rb")
            file: BinaryIO = self._files.open(f"{self._root}/{name}", "rb")
            return file

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder below; none where there is no such folder, or its protocol lists none."""
        if self.folder is not None:
            place = self.folder / folder
            return sorted(path.name for path in place.iterdir()) if place.is_dir() else []
        try:
            found = self._files.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
        except Exception:  # noqa: BLE001 - whatever the package behind a protocol raises
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def exists(self) -> bool:
        """Return whether there is a folder at all."""
        with self._reading(""):
            return self.folder.is_dir() if self.folder is not None else bool(self._files.exists(self._root))

    def _connect(self, address: str) -> tuple[Any, str]:
        try:
            import fsspec

            files, root = fsspec.url_to_fs(address, **self._options)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"the store {self.name!r} cannot be opened: {error}. For s3:// install 'stillhouse[s3]', for another "
                "protocol fsspec and its package for it"
            ) from error
        return files, root.rstrip("/")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        where = f"{self.name.rstrip('/')}/{name}".rstrip("/")
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", where) from error
        except StoreError:
            raise
        except Exception as error:  # whatever the package behind a protocol raises
            raise StoreError(f"{where} cannot be read: {_said(error)}") from error


@contextmanager
def written_aside(place: Path) -> Iterator[BinaryIO]:
    """Give a file to write; when all went well it is flushed to the disk and takes its name, else it is removed.

    Raises:
        StoreError: it cannot be written.
    """
    aside = place.with_name(place.name + ASIDE)
    try:
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(place)
            flush_folder(place.parent)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def write_file(place: Path, data: bytes) -> None:
    """Write a small file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    with written_aside(place) as file:
        file.write(data)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn every fault of writing into one that names the place and a remedy.

    Raises:
        StoreError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and start again with the same command: what is there is kept"
        else:
            remedy = "make it writable, or name another folder"
        raise StoreError(f"{place} cannot be written: {error.strerror or error}; {remedy}") from error


def local_folder(place: Path | str) -> Path:
    """Return the path of a folder that is to be written.

    Raises:
        StoreError: it is an address, or a file.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(place)):
        raise StoreError(
            f"{place}: a store is written to a local folder; name one, and copy it to its address afterwards"
        )
    path = Path(place)
    if path.exists() and not path.is_dir():
        raise StoreError(f"{place} is a file: name a folder")
    return path


def flush_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_secrets(address: str) -> str:
    """Return an address without the user and password that it may hold."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _is_local(address: str) -> bool:
    return "://" not in address or address.startswith("file://")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
