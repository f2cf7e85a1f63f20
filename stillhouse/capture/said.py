"""What a capture says to a person before it starts and when it is done."""

from __future__ import annotations

from rich.console import Console

from stillhouse.capture.checked import Checked
from stillhouse.capture.probe import Estimate
from stillhouse.capture.progress import shown_seconds
from stillhouse.data import PackedDataset
from stillhouse.disk import shown
from stillhouse.store import Manifest


def say_before(
    console: Console,
    checked: Checked,
    share: tuple[int, int],
    left: dict[PackedDataset, int],
    estimate: Estimate,
    free: int,
) -> None:
    """Say what is asked about, of whom, and about what that will take."""
    plan, teacher = checked.plan, checked.teacher
    parts = ", ".join(f"{dataset.name.replace('_', '-')} {count:,}" for dataset, count in left.items())
    rows = {
        "teacher": f"{teacher.model}, {teacher.mode}, fingerprint {teacher.fingerprint}",
        "answers": f"{plan.encoding} at T = {plan.temperature:g}, of the first {plan.vocabulary_size:,} ids",
        "to capture": f"{estimate.samples:,} samples of up to {plan.block_size:,} tokens ({parts}): "
        f"{estimate.tokens:,} tokens, {estimate.positions:,} positions that are learnt",
        "size": f"about {estimate.bytes_per_token:.1f} bytes a token, {shown(estimate.num_bytes)}"
        + (f", the output head's {shown(estimate.head_bytes)} among them" if estimate.head_bytes else "")
        + f"; {shown(free)} are free",
        "time": f"about {estimate.probe.tokens_per_second:,.0f} tokens a second, {shown_seconds(estimate.seconds)}",
    }
    if share != (0, 1):
        rows = {"part": f"{share[0]}/{share[1]}", **rows}
    for name, text in rows.items():
        console.print(f"{name:<12}{text}", markup=False)


def say_done(console: Console, folder: str, manifest: Manifest, *, before: bool, seconds: float = 0.0) -> None:
    """Say what a store holds: it was complete before, or is now."""
    shards = [shard for _, _, shard in manifest.each_shard()]
    samples, tokens, num_bytes = (
        sum(getattr(shard, name) for shard in shards) for name in ("samples", "tokens", "bytes")
    )
    share = "" if manifest.is_whole else f" (part {manifest.share[0]}/{manifest.share[1]})"
    per_token = f"{num_bytes / tokens:.1f} bytes a token" if tokens else "nothing: there are more parts than shards"
    what = f"{samples:,} samples, {tokens:,} tokens, {shown(num_bytes)}, {per_token}"
    how = "was complete before" if before else f"complete after {shown_seconds(seconds)}"
    console.print(f"{folder}{share} {how}: {what}", markup=False)
