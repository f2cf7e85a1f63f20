#!/usr/bin/env python3
"""`stillhouse-keys FOLDER`: make the secrets of a deployment, each in a file of its own, where they are missing.

run-token      among the workers of a run
teacher-token  the workers' and captures' own at the teacher
person-token   for a person: the teacher's live page, a script
scrape-token   for Prometheus: metrics, and nothing else
tokens         what the teacher is told of the last three

Whoever wants to choose them puts files of these names there first; they are left as they are.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

SECRET, READABLE = 0o400, 0o444
"""A scraper has a user of its own."""

ROLES = {
    "teacher-token": ("workers", "teacher"),
    "person-token": ("person", "teacher"),
    "scrape-token": ("prometheus", "metrics"),
}


def make_keys(folder: Path) -> list[str]:
    """Make what is missing and return the names of the files that are new."""
    made = [name for name in ("run-token", *ROLES) if _write(folder / name, secrets.token_urlsafe(32), name)]
    lines = [
        f"{who} {(folder / name).read_text(encoding='utf-8').strip()} {scope}" for name, (who, scope) in ROLES.items()
    ]
    if _write(folder / "tokens", "\n".join(lines), "tokens"):
        made.append("tokens")
    return made


def _write(path: Path, text: str, name: str) -> bool:
    if path.exists():
        return False
    aside = path.with_name(f".{name}.{os.getpid()}")
    mode = READABLE if name == "scrape-token" else SECRET
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    aside.replace(path)
    return True


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        new = make_keys(folder)
    except OSError as error:
        sys.exit(f"error: the keys cannot be written to {folder}: {error.strerror}; give this user a folder of its own")
    sys.stdout.write(f"made {', '.join(new)}\n" if new else "all keys are there\n")
