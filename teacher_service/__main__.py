"""`python -m teacher_service`: the verb `serve` may be left out."""

from __future__ import annotations

import sys

from stillhouse.cli.main import run
from teacher_service.cli import app

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] != ["serve"]:
        arguments = ["serve", *arguments]
    sys.exit(run(app, "python -m teacher_service", arguments))
