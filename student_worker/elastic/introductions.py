"""Who may train together: what workers tell each other before anything is exchanged, and who must leave.

Everybody at a lighthouse meets everybody else there: workers of another recipe, of another release, without the run's
token, or simply one more than there are micro-shards. All read the same introductions and come to the same answer, so
those who stay go on without those who leave, in the very same step.

Knows nothing of networks: texts in, ranks out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import ConfigurationError

MAX_DIFFERENCES = 4
"""Named in a refusal; two recipes that differ in more are told apart well enough by these."""


class RunMismatchError(ConfigurationError):
    """A worker of another recipe, data, release or token came to this run's lighthouse."""


class TooManyWorkersError(ConfigurationError):
    """More workers came than a global batch has micro-shards; the newest of them leave."""


@dataclass(frozen=True)
class Introduction:
    """What a worker tells its peers before weights can move.

    Attributes:
        run: recipe, data, release and what else must be equal, by names that a reader knows.
        token: the run's secret; only a keyed hash of it is shown.
        step: the committed steps of this worker.
        established: whether it has committed a step in this run already.
        device: the GPU that it computes on, by a name that no other GPU has; empty on a CPU.
    """

    run: Mapping[str, str]
    token: str
    step: int = 0
    established: bool = False
    device: str = ""

    def text(self) -> str:
        """Return what goes to the peers."""
        run = dict(sorted(self.run.items()))
        key = hashlib.sha256(self.token.encode()).digest()
        # Over the run's description, so that a proof shown to one run says nothing to another.
        proof = hashlib.blake2b(json.dumps(run).encode(), key=key, digest_size=16).hexdigest()
        told = {"established": self.established, "step": self.step, "device": self.device, "run": run, "proof": proof}
        return json.dumps(told)


@dataclass(frozen=True)
class _Peer:
    rank: int
    standing: tuple[bool, int, int]
    run: dict[str, str]
    proof: str


def _read(rank: int, text: str) -> _Peer:
    """Return a peer; one of a release that introduces itself otherwise has no standing and no run."""
    try:
        told: Any = json.loads(text)
        run = {str(name): str(value) for name, value in told["run"].items()}
        return _Peer(rank, (bool(told["established"]), int(told["step"]), -rank), run, str(told["proof"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _Peer(rank, (False, -1, -rank), {}, "")


def admit(rank: int, introductions: Sequence[str], max_workers: int) -> tuple[list[int], int]:
    """Return the ranks that train together, this worker among them, and how many of the last ones are newcomers.

    Newcomers have committed fewer steps than others, from one of whom they will take the weights. They come after all
    others, each of the two parts ascending.

    The run under way is that of the worker with the best standing: one that has committed steps in this run, then
    the one with the most steps, then the lowest rank. So a stranger that comes to a live run must leave, and not the
    run; likewise the newest where there are more workers than `max_workers`.

    Raises:
        RunMismatchError: this worker is a stranger; the message names what differs.
        TooManyWorkersError: this worker is one too many.
    """
    peers = [_read(index, text) for index, text in enumerate(introductions)]
    peers.sort(key=lambda peer: peer.standing, reverse=True)
    leader, own = peers[0], next(peer for peer in peers if peer.rank == rank)
    if own.run != leader.run:
        raise RunMismatchError(
            f"the lighthouse serves another run: {_differences(own.run, leader.run)}. Start this worker as the others "
            "were started, or give it another lighthouse"
        )
    if own.proof != leader.proof:
        raise RunMismatchError("this worker's token is not the run's. Start it with the token of the others")
    together = [peer.rank for peer in peers if (peer.run, peer.proof) == (leader.run, leader.proof)]
    if rank not in together[:max_workers]:
        raise TooManyWorkersError(
            f"the run has {max_workers} workers already, as many as micro_shards gives work to, and this one came "
            "last. Start a run with more micro_shards for more workers"
        )
    steps = {peer.rank: peer.standing[1] for peer in peers if peer.rank in together[:max_workers]}
    last = max(steps.values())
    members = sorted(steps, key=lambda member: (steps[member] < last, member))
    return members, sum(step < last for step in steps.values())


def share_a_device(introductions: Sequence[str]) -> bool:
    """Return whether any two of these workers compute on one GPU."""
    devices = [json.loads(text).get("device") for text in introductions]
    named = [device for device in devices if device]
    return len(set(named)) < len(named)


def _differences(own: dict[str, str], theirs: dict[str, str]) -> str:
    names = [name for name in sorted(own.keys() | theirs.keys()) if own.get(name) != theirs.get(name)]
    # The recipe's hash says nothing that its keys don't.
    names = [name for name in names if name != "recipe"] or names
    told = [
        f"{name} is {theirs.get(name, 'not told')} there and {own.get(name, 'not told')} here"
        for name in names[:MAX_DIFFERENCES]
    ]
    return "; ".join(told) + (f"; and {len(names) - len(told)} more" if len(names) > len(told) else "")
