"""The `stillhouse` command: one file a verb, and the services' own verbs found by entry point.

Nothing heavy is imported until a verb runs, so that `--help` is quick. Every command exits 0 when it is done, 2 for
a wrong configuration or input, 3 when a guard stopped it, and 143 when it was interrupted before its end.
"""

from stillhouse.cli.main import main

__all__ = ["main"]
