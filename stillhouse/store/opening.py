"""Reads a store's manifest, and says what is wrong where there is none that can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stillhouse.errors import StoreError
from stillhouse.store.files import CAPTURE, MANIFEST, StoreFiles
from stillhouse.store.manifest import FORMAT_VERSION, Manifest


def read_manifest(address: str | Path | StoreFiles) -> Manifest:
    """Return the manifest of a complete store, or of a complete share of one.

    Raises:
        StoreError: there is none: no such folder, no store, a capture that is not at its end, a newer format, or a
            manifest that contradicts itself.
    """
    files = address if isinstance(address, StoreFiles) else StoreFiles(address)
    try:
        data = files.read(MANIFEST)
    except FileNotFoundError:
        raise StoreError(_why_there_is_none(files)) from None
    try:
        values = json.loads(data)
    except ValueError as error:
        raise StoreError(f"{files.name}: {MANIFEST} is no JSON ({error}); copy it again") from error
    version = _version(values)
    if version is None:
        raise StoreError(f"{files.name} is no store: its {MANIFEST} is something else's")
    if version != FORMAT_VERSION:
        what = "newer" if version > FORMAT_VERSION else "older"
        raise StoreError(
            f"{files.name} is a store of format {version}, {what} than the {FORMAT_VERSION} that is known here: "
            f"use the Stillhouse that wrote it, or a later one"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(f"{files.name}: {MANIFEST} contradicts itself: {complaints(error)}; copy it again") from error
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{files.name}: {MANIFEST} contradicts itself: {error}; copy it again") from error


def complaints(error: ValidationError) -> str:
    """Return what pydantic found wrong, in one line."""
    faults = error.errors()[:3]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'manifest'}: {fault['msg']}" for fault in faults)


def _version(values: Any) -> int | None:
    if not isinstance(values, dict):
        return None
    plan = values.get("plan")
    # A later format may say it elsewhere, or in another form.
    version = plan.get("format_version") if isinstance(plan, dict) else values.get("format_version")
    if isinstance(version, str) and version.isascii() and version.isdigit():
        version = int(version)
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def _why_there_is_none(files: StoreFiles) -> str:
    if not files.exists():
        return f"there is no store at {files.name}: no such folder"
    try:
        files.size(CAPTURE)
    except FileNotFoundError:
        return f"{files.name} is no store: it has no {MANIFEST}; `stillhouse capture` makes one"
    return (
        f"{files.name} is a capture that is not at its end: run `stillhouse capture` again with the same flags, and it "
        "goes on where it stood"
    )
