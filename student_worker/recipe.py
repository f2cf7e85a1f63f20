"""The one schema of a run: what is trained, on what, by whom, and how the worker that does it behaves.

Keys carry the names that transformers and TRL give them where they mean the same. Unknown keys are refused, and every
key here is applied. Where values come from (file, environment, flags) is in `recipe_sources`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic.config import JsonDict

from stillhouse.data import DataSpec
from student_worker import encoding_choice
from student_worker.layer_numbers import check_layers, parse_layers
from student_worker.schedule import SchedulerType

RESULT: JsonDict = {"affects_result": True}
"""Marks the keys that the trained weights depend on: the recipe's hash covers these and no others. The data and the
teacher have fingerprints of their own, which do not change when a folder or an address does."""


def _layers(value: object) -> object:
    if isinstance(value, str):
        return parse_layers(value)
    return [value] if isinstance(value, int) else value


Layers = Annotated[tuple[int, ...], BeforeValidator(_layers)]


class Strict(BaseModel):
    """A part of the schema: unknown keys refused, values never changed after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FixtureSpec(Strict):
    """A student with no model: one learnt row of logits."""

    kind: Literal["fixture"] = Field(description="What kind of student: causal_lm (the default) or fixture.")
    vocabulary_size: int | None = Field(None, ge=1, description="A fixture's width; by default the teacher's.")
    initial_value: float = Field(0.0, description="Every logit of a fixture at the start.")


class CausalLMSpec(Strict):
    """A language model: from weights, from a configuration, or cut out of its teacher."""

    kind: Literal["causal_lm"] = Field(description="What kind of student: causal_lm (the default) or fixture.")
    model: str | None = Field(
        None, description="Folder, hub name or .gguf file with the weights to start from; by default the teacher's."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub name.")
    config: str | None = Field(
        None, description="A config.json (or its folder): start from random weights, drawn from the seed."
    )
    keep_layers: Layers | None = Field(
        None, description="Keep only these layers of the model, for example 0-9,11,13-29, numbered from 0."
    )
    attn_implementation: str | None = Field(None, description="As in transformers: eager, sdpa, ...")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )

    @field_validator("keep_layers")
    @classmethod
    def _check_layers(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else check_layers(value)

    @model_validator(mode="after")
    def _check_one_origin(self) -> Self:
        if self.config is not None and (self.model is not None or self.keep_layers is not None):
            raise ValueError("config draws new weights, so model and keep_layers cannot stand beside it; drop one")
        if self.config is None and self.model is None and self.keep_layers is None:
            raise ValueError("name the student: model, config, or keep_layers to cut it out of its teacher")
        return self


def _default_kind(value: object) -> object:
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "causal_lm", **value}
    return value


StudentSpec = Annotated[
    Annotated[FixtureSpec | CausalLMSpec, Field(discriminator="kind")], BeforeValidator(_default_kind)
]


class Recipe(Strict):
    """A run. Times are in seconds, sizes in samples unless a name says otherwise."""

    teacher: str = Field(description="The teacher's gRPC address, for example 127.0.0.1:8001.")
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
    data: DataSpec
    tokenizer: str | None = Field(
        None,
        description="Folder or hub name of the tokenizer; by default the student's base model's, else the teacher's.",
    )

    temperature: float = Field(
        1.0, gt=0, description="Divides the logits of both sides before KL.", json_schema_extra=RESULT
    )
    alpha: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Weight of cross-entropy; 1 - alpha weighs KL. 0 learns from the teacher alone.",
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
        None, ge=1, description="Steps in all; or give num_train_epochs.", json_schema_extra=RESULT
    )
    num_train_epochs: float | None = Field(
        None,
        gt=0,
        description="Passes over the data; by default 1 where max_steps is not given.",
        json_schema_extra=RESULT,
    )
    global_batch_size: int = Field(
        8, ge=1, description="Samples per step, of all workers together.", json_schema_extra=RESULT
    )
    micro_shards: int = Field(
        4,
        ge=1,
        description="Parts that a global batch is cut into: a power of two, at least the most workers expected.",
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
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")

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
    save_total_limit: int | None = Field(2, ge=1, description="Keep the newest so many checkpoints.")
    license: str = Field("not recorded", description="The licence that the export's model card names.")
    export_initial: bool = Field(False, description="Export the untrained student too, to output_dir/initial.")

    prefetch_steps: int = Field(2, ge=0, description="Steps whose answers are fetched ahead.")
    prefetch_bytes: int = Field(
        512 * 2**20, ge=0, description="Answers held ahead of the step, in bytes; the step's own are always fetched."
    )
    teacher_wait_seconds: float = Field(600.0, ge=0, description="Give up on a teacher that has been away for so long.")
    request_timeout_seconds: float = Field(120.0, gt=0, description="Deadline of one request to the teacher.")

    lighthouse: str | None = Field(
        None, description="host:port of the lighthouse where workers meet; a single worker needs none."
    )
    run_token: SecretStr | None = Field(
        None, description="The run's secret among workers; better given as STUDENT_RUN_TOKEN than on a command line."
    )
    worker_index: int = Field(0, ge=0, description="Which of the workers on this host this is, from 0.")
    local_workers: int = Field(
        1, ge=1, description="Workers started together on this host, set by --workers: they wait for each other once."
    )
    step_timeout_seconds: float = Field(
        60.0, gt=0, description="How long workers wait for each other within a step; 5 times the slowest shard or more."
    )
    http_host: str = Field("127.0.0.1", description="Where health and metrics are served.")
    http_port: int = Field(
        8010, ge=0, le=65_535, description="Its port, plus worker_index; one that is taken: the next. 0: a free one."
    )

    @field_validator("encoding", "eval_encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        return encoding_choice.check_text(value)

    @field_validator("micro_shards")
    @classmethod
    def _check_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"must be a power of two; {value} is none, {1 << value.bit_length()} is the next")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError("max_steps and num_train_epochs both say how long to train; give one")
        if self.micro_shards > self.global_batch_size:
            raise ValueError(
                f"micro_shards {self.micro_shards} is more than the {self.global_batch_size} samples of a global "
                "batch; raise global_batch_size or lower micro_shards"
            )
        if self.max_steps is not None and self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than max_steps {self.max_steps}")
        return self

    def num_steps(self, num_samples: int) -> int:
        """Return the steps of the run over a dataset of so many samples."""
        if self.max_steps is not None:
            return self.max_steps
        samples = (self.num_train_epochs or 1.0) * num_samples
        return max(1, -int(-samples // self.global_batch_size))

    def result_keys(self) -> dict[str, Any]:
        """Return what the trained weights depend on, as JSON holds it."""
        marked = {name for name, info in type(self).model_fields.items() if info.json_schema_extra == RESULT}
        return {**self.model_dump(mode="json", include=marked), "encoding": encoding_choice.canonical(self.encoding)}

    @property
    def hash(self) -> str:
        """The fingerprint of `result_keys`: runs of the same hash, data and teacher have the same weights."""
        from stillhouse.fingerprint import fingerprint

        return fingerprint("recipe", json.dumps(self.result_keys(), sort_keys=True))
