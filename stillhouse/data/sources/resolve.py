"""What a list of names stands for: each file, folder, glob, hub dataset or built-in text, in the order it is read."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stillhouse.data.items import Item, Place, Text
from stillhouse.data.sources.files import COMPRESSIONS
from stillhouse.data.sources.hub import hub_content, read_hub
from stillhouse.data.sources.readers import read_jsonl, read_parquet, read_text, read_tokens
from stillhouse.data.spec import BUILTIN_SCHEME, HUB_SCHEME, DataSpec
from stillhouse.errors import DataError

KIND_BY_ENDING: Final = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".bin": "tokens",
}

READERS: Final[dict[str, Callable[[Path, DataSpec], Iterator[Item]]]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "tokens": read_tokens,
}

DigestFile = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that documents are read from.

    `kind` is text, jsonl, parquet, tokens, hub or builtin; `read` yields its documents; `content` returns what tells
    its content from any other's, whatever its name (the argument gives the fingerprint of a file's bytes).
    """

    name: str
    kind: str
    read: Callable[[], Iterator[Item]]
    content: Callable[[DigestFile], tuple[str, ...]]


def resolve(names: tuple[str, ...], spec: DataSpec) -> tuple[Source, ...]:
    """Return the sources that names stand for; nothing is read yet.

    Raises:
        DataError: a name that stands for nothing, a file of unknown kind, or one that is named twice.
    """
    sources: list[Source] = []
    for name in names:
        if name.startswith(BUILTIN_SCHEME):
            sources.append(_builtin(name))
        elif name.startswith(HUB_SCHEME):
            sources.append(_hub(name.removeprefix(HUB_SCHEME), spec))
        else:
            sources.extend(_file(path, spec) for path in _paths(name, spec))
    seen: set[str] = set()
    for source in sources:
        if source.name in seen:
            raise DataError(f"{source.name} is named twice among the sources; name it once")
        seen.add(source.name)
    return tuple(sources)


def _paths(name: str, spec: DataSpec) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, spec)
    if path.exists():
        return [path]
    if glob.has_magic(name):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - takes any pattern
        found = sorted(match for match in matches if match.is_file())
        if not found:
            raise DataError(f"no file matches {name!r}; check the pattern, quoted so that the shell leaves it alone")
        return found
    if "://" in name:
        raise DataError(f"{name} is not a local path; fetch it, or name a hub dataset as {HUB_SCHEME}OWNER/NAME")
    raise DataError(f"{name} does not exist (looked in {Path.cwd()}); a hub dataset is named as {HUB_SCHEME}OWNER/NAME")


def _folder(folder: Path, spec: DataSpec) -> list[Path]:
    found: list[Path] = []
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found.extend(Path(parent, name) for name in files if not name.startswith("."))
    if spec.format == "auto":
        found = [path for path in found if _kind(path) is not None]
    if not found:
        known = " ".join(KIND_BY_ENDING) if spec.format == "auto" else "any file"
        raise DataError(f"the folder {folder} holds no data (looked for {known}); for other endings say the format")
    return sorted(found)


def _kind(path: Path) -> str | None:
    inner = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return KIND_BY_ENDING.get(inner.suffix.lower())


def _file(path: Path, spec: DataSpec) -> Source:
    kind = _kind(path) if spec.format == "auto" else spec.format
    if kind is None:
        raise DataError(
            f"{path}: its ending tells no kind of data (known: {' '.join(KIND_BY_ENDING)}, with .gz or .zst after); "
            "say what it holds with format: text, jsonl, parquet or tokens"
        )
    if kind == "parquet" and path.suffix in COMPRESSIONS:
        raise DataError(f"{path}: Parquet is compressed inside; decompress the file")
    reader = READERS[kind]
    return Source(str(path), kind, lambda: reader(path, spec), lambda digest: (kind, digest(path)))


def _hub(name: str, spec: DataSpec) -> Source:
    if not name:
        raise DataError(f"{HUB_SCHEME} names no dataset; write {HUB_SCHEME}OWNER/NAME")
    return Source(HUB_SCHEME + name, "hub", lambda: read_hub(name, spec), lambda _digest: hub_content(name, spec))


def _builtin(name: str) -> Source:
    if name != BUILTIN_SCHEME + "pydoc-topics":
        raise DataError(f"{name} is no built-in text; there is {BUILTIN_SCHEME}pydoc-topics")
    # The help texts that ship with every CPython: real prose and code that needs no download.
    from pydoc_data.topics import topics

    documents = sorted(topics.items())

    def read() -> Iterator[Item]:
        for topic, text in documents:
            yield Text(Place(f"{name} {topic!r}"), text)

    return Source(name, "builtin", read, lambda _digest: ("builtin", *(part for pair in documents for part in pair)))
