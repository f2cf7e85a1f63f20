"""What a step costs each part of a cluster, in closed form, and how fast the cluster can be at most.

Operational analysis (Denning and Buzen 1978): a resource that works D seconds for each step lets at most one step pass
in D seconds, whatever the order of events; the largest D bounds them all, and at X steps a second each resource is busy
for the part X D of the time.
"""

from __future__ import annotations

from benchmarks._cluster.parts import Cluster
from student_worker.elastic.sum_costs import sum_traffic_bytes

RESOURCES = (
    "teacher_model",
    "teacher_process",
    "teacher_network",
    "redis",
    "redis_network",
    "student_compute",
    "student_network",
)


def sum_bytes(cluster: Cluster) -> int:
    """Return what the exact sum of the gradients carries to or from one student in a step."""
    return sum_traffic_bytes("exact", cluster.micro_shards, int(cluster.student.parameters), cluster.students)


def demands(cluster: Cluster) -> dict[str, float]:
    """Return the seconds that one step takes of each resource, each teacher and student having its even share."""
    service, form, redis = cluster.service, cluster.form, cluster.redis if cluster.is_remembered else None
    tokens, sequences = cluster.step_tokens, cluster.micro_shards * cluster.shard_sequences
    answer_bytes = tokens * form.bytes_per_position
    computed = 1 - cluster.hits
    requests = sequences / cluster.part_sequences
    batches = computed * tokens / max(service.max_batch_tokens, cluster.sequence_tokens)
    token_seconds = service.token_seconds + form.encode_seconds
    sum_seconds = sum_bytes(cluster) / cluster.student_bytes_s
    shards = -(-cluster.micro_shards // cluster.students)
    student_tokens = shards * cluster.shard_tokens
    process = requests * service.request_seconds + sequences * service.sequence_seconds
    return {
        "teacher_model": (computed * tokens * token_seconds + batches * service.batch_seconds) / cluster.teachers,
        "teacher_process": (process + answer_bytes / service.process_bytes_s) / cluster.teachers,
        "teacher_network": answer_bytes / cluster.teacher_bytes_s / cluster.teachers,
        # What is remembered is read, and what is not yet is written: each answer passes once, this way or that.
        "redis": sequences * redis.value_seconds + answer_bytes / redis.bytes_s if redis else 0.0,
        "redis_network": max(cluster.hits, computed) * answer_bytes / cluster.redis_bytes_s if redis else 0.0,
        "student_compute": student_tokens * (cluster.student.token_seconds + form.decode_seconds)
        + cluster.student.step_seconds
        + (cluster.save_seconds / cluster.save_steps if cluster.save_steps else 0.0),
        "student_network": student_tokens * form.bytes_per_position / cluster.student_bytes_s + sum_seconds,
    }


def chain_seconds(cluster: Cluster) -> float:
    """Return what a student's own step takes with all answers there: it computes, then sums, one after the other."""
    return demands(cluster)["student_compute"] + sum_bytes(cluster) / cluster.student_bytes_s


def least_step_seconds(cluster: Cluster) -> float:
    """Return the time in which no step can be shorter, on average."""
    return max(*demands(cluster).values(), chain_seconds(cluster))
