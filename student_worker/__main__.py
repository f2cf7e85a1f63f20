"""`python -m student_worker`: the verbs of `stillhouse student`."""

from __future__ import annotations

import sys

from stillhouse.cli.main import run
from student_worker.cli import app

if __name__ == "__main__":
    sys.exit(run(app, "python -m student_worker"))
