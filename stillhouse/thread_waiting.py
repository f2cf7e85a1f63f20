"""How the threads of a parallel computation wait for each other: asleep, so that others can use the core meanwhile.

By default OpenMP, on which torch computes, spins: a thread that has done its share keeps its core busy until the rest
have done theirs. Alone on a machine that saves a microsecond. Where several processes share the cores, as a teacher and
its students on one host do, each waits for threads that cannot run because the others spin: seconds for what takes
milliseconds.
"""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""OpenMP's own, and what its two common libraries take in its place."""


def wait_asleep() -> None:
    """Choose so for this process and its children, unless the environment says anything of it.

    Call it before torch is imported: its library reads the environment when it is loaded.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
