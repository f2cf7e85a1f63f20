"""The one schema of a run: what is trained, on what, by whom, and how the worker that does it behaves.

Keys carry the names that transformers and TRL give them where they mean the same. Unknown keys are refused, and every
key here is applied. Where values come from (file, environment, flags) is in `student_worker.recipe.sources`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from stillhouse.channel import check_address
from stillhouse.encoding_text import parse_encoding
from stillhouse.encodings import Candidates, Sampled
from student_worker.elastic.network import split_address
from student_worker.recipe import encoding_choice
from student_worker.recipe.checks import check_together
from student_worker.recipe.data import RunData
from student_worker.recipe.student import CausalLMSpec, FixtureSpec, Strict, StudentSpec
from student_worker.schedule import SchedulerType

__all__ = ["CausalLMSpec", "FixtureSpec", "Recipe"]

RESULT: JsonDict = {"affects_result": True}
"""Marks the keys that the trained weights depend on: the recipe's hash covers these and no others. The data and the
teacher have fingerprints of their own, which do not change when a folder or an address does."""


MAX_WAIT_SECONDS = 86_400 * 366
"""A year: longer than any run waits, and short enough for every clock."""


class Recipe(Strict):
    """A run. Times are in seconds, sizes in samples unless a name says otherwise."""

    store: str | None = Field(
        None,
        min_length=1,
        description="Folder or fsspec address of a store to learn from, with no teacher at work. With a teacher too, "
        "the store answers what it holds, and the teacher the rest.",
    )
    teacher: str | None = Field(
        None,
        validate_default=True,
        description="The teacher's address, of gRPC (127.0.0.1:8001) or HTTP (http://127.0.0.1:8000); not needed with "
        "a store.",
    )
    teacher_token: SecretStr | None = Field(
        None, description="The teacher's token; better given as STUDENT_TEACHER_TOKEN than on a command line."
    )
    teacher_ca: str | None = Field(
        None,
        description="PEM file of the authority that signed the teacher's certificate, for TLS; system: those that this "
        "machine trusts. By default the connection is not encrypted.",
    )
    teacher_certificate: Path | None = Field(
        None, description="PEM file of this worker's own certificate, where the teacher asks for one (mutual TLS)."
    )
    teacher_key: Path | None = Field(None, description="PEM file of that certificate's private key, unencrypted.")
    student: StudentSpec = Field(json_schema_extra=RESULT)
    data: RunData = Field(default_factory=RunData, validate_default=True)
    tokenizer: str | None = Field(
        None,
        description="Folder or hub name of the tokenizer; by default the student's base model's, else the teacher's.",
    )

    temperature: float = Field(
        1.0,
        ge=1e-3,
        le=1e4,
        description="Divides the logits of both sides before KL.",
        json_schema_extra=RESULT,
    )
    alpha: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of cross-entropy; 1 - alpha weighs KL. 0 learns from the teacher alone.",
        json_schema_extra=RESULT,
    )
    loss: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl",
        description="What 1 - alpha weighs: KL(teacher || student); reverse_kl, KL(student || teacher); or jsd, the "
        "generalised Jensen-Shannon divergence (arXiv 2306.13649). The last two need the whole distribution: encoding "
        "dense or hidden.",
        json_schema_extra=RESULT,
    )
    jsd_beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="With loss jsd: the teacher's share of the mixture that both sides are compared with.",
        json_schema_extra=RESULT,
    )
    encoding: str = Field(
        "auto", description=f"What the teacher answers with: {encoding_choice.FORMS}.", json_schema_extra=RESULT
    )
    top_k_tail: Literal["bucket", "renormalise"] = Field(
        "bucket",
        description="What becomes of the ids that a top_k or candidates answer leaves out: bucket compares their mass "
        "as one; renormalise drops them, as other tools do, and so teaches that every other token is impossible.",
        json_schema_extra=RESULT,
    )

    learning_rate: float = Field(3e-4, gt=0, description="The highest rate of the schedule.", json_schema_extra=RESULT)
    lr_scheduler_type: SchedulerType = Field(
        "cosine", description="The shape after the warm-up.", json_schema_extra=RESULT
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises from 0.", json_schema_extra=RESULT)
    weight_decay: float = Field(
        0.0, ge=0, description="AdamW's decay; never on norms and biases.", json_schema_extra=RESULT
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first decay rate.", json_schema_extra=RESULT)
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second decay rate.", json_schema_extra=RESULT)
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.", json_schema_extra=RESULT)
    max_grad_norm: float = Field(
        1.0, ge=0, description="Clip the whole gradient to this norm; 0 does not clip.", json_schema_extra=RESULT
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        le=10**10,
        description="Steps in all; or give num_train_epochs or max_tokens.",
        json_schema_extra=RESULT,
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=10**15,
        description="Train until so many tokens were read: the step that reaches them is the last.",
        json_schema_extra=RESULT,
    )
    num_train_epochs: float | None = Field(
        None,
        gt=0,
        le=1e5,
        description="Passes over the data; by default 1 where nothing else says how long.",
        json_schema_extra=RESULT,
    )
    global_batch_size: int = Field(
        8, ge=1, le=10**7, description="Samples per step, of all workers together.", json_schema_extra=RESULT
    )
    micro_shards: int = Field(
        4,
        ge=1,
        description="Parts that a global batch is cut into: a power of two, at least the most workers expected.",
        json_schema_extra=RESULT,
    )
    per_device_train_batch_size: int | None = Field(
        None,
        ge=1,
        description="Samples in one forward pass: a micro-shard of more takes several, and their gradients are added. "
        "Less memory, more time; by default a whole micro-shard.",
        json_schema_extra=RESULT,
    )
    reduction: Literal["exact", "fast"] = Field(
        "exact",
        description="How gradients are summed: exact gives the same bits for any number of workers.",
        json_schema_extra=RESULT,
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 computes under autocast; weights stay float32.", json_schema_extra=RESULT
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Of the order, dropout, new weights.", json_schema_extra=RESULT)
    full_determinism: bool = Field(
        False, description="Only deterministic kernels: on CUDA the same bits from run to run, for some speed."
    )
    torch_threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Processor threads of each worker, part of what makes two runs equal to the bit; by default this "
        "machine's cores divided by micro_shards, so that it does not depend on the number of workers.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$", description="auto, cpu, cuda or cuda:N.")
    device_locks: Path | None = Field(
        None,
        description="Folder of this host that its workers share, in which each locks a GPU of its own; with device "
        "auto. By default --workers gives each a GPU as long as there are so many, and a worker alone takes the first.",
    )
    reserved_devices: tuple[str, ...] = Field(
        (),
        description="GPUs that no worker takes, such as the teacher's: UUIDs, or numbers as nvidia-smi -L shows them.",
    )
    share_devices: bool = Field(
        False, description="Where every GPU is taken, share the one with the fewest workers instead of ending."
    )

    output_dir: Path = Field(description="Folder of the run: metrics.jsonl, checkpoints, result.json, export.")
    resume: bool = Field(False, description="Go on from the newest checkpoint in output_dir.")
    logging_steps: int = Field(1, ge=1, description="Write a line of metrics every so many steps.")
    eval_steps: int | None = Field(
        None,
        ge=0,
        description="Evaluate on the held-out part every so many steps, besides start and end; 0: never at all.",
    )
    eval_encoding: str = Field(
        "auto",
        description="What the teacher answers with on the held-out part, at T = 1: auto, hidden, dense or top_k.",
    )
    eval_memory_bytes: int = Field(
        512 * 2**20, ge=0, description="Keep the teacher's held-out answers in memory when they fit in so many bytes."
    )
    save_steps: int = Field(100, ge=1, description="Write a checkpoint every so many steps, and at the end.")
    save_in_background: bool = Field(
        True,
        description="Write checkpoints while the run goes on, which takes the memory of a copy: 12 bytes for each "
        "trained parameter. Otherwise it waits until they are written.",
    )
    save_total_limit: int | None = Field(
        2, ge=1, description="Keep the newest so many checkpoints, and the best one beside them."
    )
    checkpoint_dir: str | None = Field(
        None,
        description="Folder or fsspec address (such as s3://bucket/run) of the checkpoints; by default output_dir.",
    )
    metric_for_best_model: Literal["loss", "kl", "cross_entropy"] = Field(
        "loss",
        description="Which held-out figure the best checkpoint has lowest, all at T = 1: loss is what is minimised, "
        "its divergence included; kl is always KL(teacher || student).",
    )
    load_best_model_at_end: bool = Field(
        False, description="Export the weights of the best held-out evaluation instead of the last ones."
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after so many evaluations in a row that are no better than the best before them.",
        json_schema_extra=RESULT,
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="By how much an evaluation must be lower to be better.", json_schema_extra=RESULT
    )
    max_loss: float | None = Field(
        None, gt=0, description="Stop the run (exit code 3) at a step whose loss is above this."
    )
    smoke_steps: int | None = Field(
        None,
        ge=1,
        description="Do exactly so many steps of the run, say how long the whole would take, and export nothing.",
    )
    sample_log: bool = Field(
        False, description="Write the ids of every step's samples, and who computed them, to samples.jsonl."
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="Where figures go besides metrics.jsonl: tensorboard, wandb."
    )
    run_name: str | None = Field(
        None, description="What trackers call the run; by default the name of output_dir. One run per training."
    )
    callbacks: tuple[str, ...] = Field(
        (), description="Callbacks of your own, as module:Class, in the order in which they are called."
    )
    license: str = Field("not recorded", description="The licence that the export's model card names.")
    export_initial: bool = Field(False, description="Export the untrained student too, to output_dir/initial.")

    prefetch_steps: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="Steps whose answers are fetched ahead; by default 2, or none where teacher and student share this "
        "host's CPU.",
    )
    prefetch_bytes: int = Field(
        512 * 2**20, ge=0, description="Answers held ahead of the step, in bytes; the step's own are always fetched."
    )
    teacher_wait_seconds: float = Field(
        600.0, ge=0, le=MAX_WAIT_SECONDS, description="Give up on a teacher that has been away for so long."
    )
    request_timeout_seconds: float = Field(
        120.0, ge=0.001, le=MAX_WAIT_SECONDS, description="Deadline of one request to the teacher."
    )

    lighthouse: str | None = Field(
        None, description="host:port of the lighthouse where workers meet; a single worker needs none."
    )
    run_token: SecretStr | None = Field(
        None, description="The run's secret among workers; better given as STUDENT_RUN_TOKEN than on a command line."
    )
    worker_index: int = Field(0, ge=0, le=65_535, description="Which of the workers on this host this is, from 0.")
    worker_index_by_lock: bool = Field(
        False,
        description="Take the lowest number that no other worker holds, by a lock in output_dir: for replicas of a "
        "container, which are all started alike.",
    )
    local_workers: int = Field(
        1, ge=1, description="Workers started together on this host, set by --workers: they wait for each other once."
    )
    step_timeout_seconds: float = Field(
        60.0,
        gt=0,
        le=MAX_WAIT_SECONDS,
        description="How long workers wait for each other within a step; 5 times the slowest shard or more.",
    )
    http_host: str = Field("127.0.0.1", description="Where health and metrics are served.")
    http_port: int = Field(
        8010,
        ge=0,
        le=65_535,
        description="Its port, plus worker_index under --workers; one that is taken: the next. 0: a free one.",
    )

    http_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="A token that its metrics and live page ask for; better given as STUDENT_HTTP_TOKEN than on a "
        "command line.",
    )

    @field_validator("teacher")
    @classmethod
    def _check_teacher(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            check_address(value)
        elif info.data.get("store", "invalid") is None:
            raise PydanticCustomError("missing", "neither a teacher nor a store")
        return value

    @field_validator("data")
    @classmethod
    def _check_data(cls, value: RunData, info: ValidationInfo) -> RunData:
        if not value.sources and info.data.get("store", "invalid") is None:
            raise PydanticCustomError("missing", "no sources")
        return value

    @field_validator("lighthouse")
    @classmethod
    def _check_lighthouse(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("encoding", "eval_encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        return encoding_choice.check_text(value)

    @field_validator("eval_encoding")
    @classmethod
    def _check_eval_encoding(cls, value: str) -> str:
        if value != encoding_choice.AUTO and isinstance(parse_encoding(value), Sampled | Candidates):
            raise ValueError("must be auto, hidden, dense or top_k, which tell what a held-out figure needs")
        return value

    @field_validator("report_to", "callbacks")
    @classmethod
    def _check_no_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((name for name in value if value.count(name) > 1), None):
            raise ValueError(f"must name each once; {twice} stands twice")
        return value

    @field_validator("callbacks")
    @classmethod
    def _check_callbacks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            module, colon, class_name = name.partition(":")
            if not (module and colon and class_name.isidentifier()):
                raise ValueError(f"must be written as module:Class; {name!r} is not")
        return value

    @field_validator("micro_shards")
    @classmethod
    def _check_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"must be a power of two; {value} is none, {1 << value.bit_length()} is the next")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_together(self)
        return self

    @property
    def reads_store(self) -> bool:
        """Whether the samples themselves are the store's, since no sources are named."""
        return self.store is not None and not self.data.sources

    def result_keys(self) -> dict[str, Any]:
        """Return what the trained weights depend on, as JSON holds it."""
        marked = {name for name, info in type(self).model_fields.items() if info.json_schema_extra == RESULT}
        return {**self.model_dump(mode="json", include=marked), "encoding": encoding_choice.canonical(self.encoding)}

    @property
    def hash(self) -> str:
        """The fingerprint of `result_keys`: runs of the same hash, data and teacher have the same weights."""
        from stillhouse.fingerprint import fingerprint

        return fingerprint("recipe", json.dumps(self.result_keys(), sort_keys=True))
