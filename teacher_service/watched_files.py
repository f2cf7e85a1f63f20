"""Reads the small files that a service looks at again while it runs: tokens and certificates.

Knows nothing of what they hold.
"""

from __future__ import annotations

import stat
from pathlib import Path

from stillhouse.errors import ConfigurationError

_MAX_FILE_BYTES = 2**20


def read_watched_file(setting: str, path: Path) -> bytes:
    """Return what the file that `setting` names holds now.

    Raises:
        ConfigurationError: it cannot be read, would keep its reader waiting, or is far larger than any such file.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        # Whoever opens a pipe that nobody writes to waits for ever.
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise ConfigurationError(
                f"{setting}: {path} is no regular file; name one, since it is read again and again"
            )
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror or error}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{setting}: {path} has more than {_MAX_FILE_BYTES} bytes; is it the right file?")
    return data
