"""What the headline figures are meant to be, and whether they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure, what it says, where the pages speak of it, and its goal if it has one."""

    benchmark: str
    figure: str
    says: str
    link: str
    bound: Literal["at least", "at most"] | None = None
    goal: float = 0.0
    needs_peers: bool = False

    def is_met(self, value: float) -> bool | None:
        """Return whether the goal is met; None where there is none."""
        if self.bound is None:
            return None
        return value >= self.goal if self.bound == "at least" else value <= self.goal


HEADLINES: Final = (
    Headline(
        "kd_kernel", "speedup_over_eager", "loss and gradient, over eager autograd", "#the-kernel", "at least", 16
    ),
    Headline(
        "kd_kernel",
        "speedup_over_liger",
        "over Liger-Kernel's, compiled",
        "#the-kernel",
        "at least",
        4,
        needs_peers=True,
    ),
    Headline("kd_kernel", "ratio_to_memory_pass", "in passes over the same memory", "#the-kernel", "at most", 2.5),
    Headline("head_and_loss", "peak_memory_over_plain", "memory of head and loss in one", "#head-and-loss"),
    Headline(
        "serving",
        "dense_mb_s_over_best_grpc_peer",
        "dense answers, over gRPC peers",
        "#serving",
        "at least",
        2,
        needs_peers=True,
    ),
    Headline(
        "serving",
        "dense_mb_s_over_best_peer",
        "dense answers, over all peers",
        "#serving",
        "at least",
        1.2,
        needs_peers=True,
    ),
    Headline(
        "serving", "rps_over_best_peer", "small requests, over all peers", "#serving", "at least", 1, needs_peers=True
    ),
    Headline("serving", "topk64_tokens_s_over_dense", "top-64 over dense, in tokens", "#serving", "at least", 50),
    Headline("serving", "sampled50_tokens_s_over_dense", "50 draws over dense", "#serving", "at least", 50),
    Headline("fronts", "fronts_hits_over_one_process", "small hits, one front over none", "#front-processes"),
    Headline("cache_path", "hit_mb_s_over_raw_mget", "a hit, over Redis alone", "#a-cache-hit", "at least", 0.5),
    Headline("training", "offline_over_plain", "from a store, over no teacher", "#training", "at least", 0.95),
    Headline("training", "remote_over_plain", "a live teacher, over no teacher", "#training", "at least", 0.97),
    Headline("training", "same_box_over_sum", "teacher and student on one box", "#training", "at least", 0.95),
    Headline("training", "two_workers_over_one", "two workers over one", "#training", "at least", 1.8),
    Headline("training", "latency_hidden", "of a teacher's latency, by prefetch", "#training"),
    Headline("startup", "help_seconds", "the slowest command's `--help`, s", "#start-up", "at most", 0.5),
    Headline("cost", "model_median_ratio", "of measured and modelled, the median", "#how-cost-grows"),
    Headline("cluster", "simulated_over_measured_requests_s", "simulated over measured", "#how-cost-grows"),
    Headline("cluster", "students_busy", "of 256, by 8 teachers on new text", "#how-cost-grows"),
    Headline("store", "sampled50_bytes_per_token", "of a store, 50 draws", "store-format.md", "at most", 48),
    Headline("store", "topk64_bytes_per_token", "of a store, top-64", "store-format.md", "at most", 300),
    Headline("encodings", "dense_f32_bytes_per_position", "of an answer, dense float32", "payload-format.md"),
    Headline("encodings", "topk64_bytes_per_position", "of an answer, top-64", "payload-format.md"),
    Headline("encodings", "sampled50_bytes_per_position", "of an answer, 50 draws", "payload-format.md"),
    Headline("encodings", "sampled50_gradient_angle_degrees", "50 draws' gradient to the full one's", "mathematics.md"),
    Headline("overload", "throughput_kept", "at three times what can be served", "teacher.md"),
    Headline("deterministic", "throughput_kept", "of deterministic mode", "teacher.md"),
    Headline("recovery", "kill_to_next_step_seconds", "the others, after a kill -9", "elastic.md"),
    Headline("recovery", "join_pause_seconds", "the others, when one joins", "elastic.md"),
    Headline("recovery", "frozen_peer_dropped_seconds", "of which 3 s are the timeout", "elastic.md"),
    Headline("reduction", "exact_over_fast_step_time", "the exact sum's step over a fast one's", "elastic.md"),
)
