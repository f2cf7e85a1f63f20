"""The version, in the one place that everything else reads it from, and the commit that this code is of."""

from __future__ import annotations

from functools import cache

__version__ = "0.1.0"

COMMIT_VARIABLE = "STILLHOUSE_COMMIT"
"""Names the commit where there is no checkout to ask: an image sets it when it is built."""

_GIT_SECONDS = 5.0


@cache
def source_commit() -> str | None:
    """Return the commit that this code is of, `-dirty` behind it where files differ; None where nothing tells.

    Known from the environment (images), from the checkout that this file lies in, or from what pip has noted of an
    installation from a repository (PEP 610).
    """
    import os

    named = os.environ.get(COMMIT_VARIABLE, "").strip()
    # What an image is built with where nobody has said.
    return (named if named != "unknown" else "") or _of_checkout() or _of_installation()


def version_text() -> str:
    """Return the version, and behind it the commit in brackets where it is known."""
    commit = source_commit()
    return f"{__version__} ({commit})" if commit else __version__


def _of_checkout() -> str | None:
    import shutil
    import subprocess
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _of_installation() -> str | None:
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        noted = json.loads(distribution("stillhouse").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    commit = noted.get("vcs_info", {}).get("commit_id")
    return str(commit) if commit else None
