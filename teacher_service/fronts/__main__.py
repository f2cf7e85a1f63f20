"""`python -m teacher_service.fronts SOCKET MEMORY`: one front, as the engine starts it, with two open descriptors."""

from __future__ import annotations

import sys

from teacher_service.fronts.front import run

if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
