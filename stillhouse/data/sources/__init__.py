"""Where documents come from: files of several kinds, folders and globs of them, hub datasets, built-in texts."""

from stillhouse.data.sources.resolve import Source, resolve

__all__ = ["Source", "resolve"]
