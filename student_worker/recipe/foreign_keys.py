"""Names that other trainers have for what a recipe says, and which key says it here.

Nothing is translated silently: a key that means nearly the same is how batches come to train one row of sixteen.
Knows nothing of the schema.
"""

from __future__ import annotations

import difflib

_ACCUMULATION = (
    "global_batch_size is the samples of a step whatever the number of workers, and per_device_train_batch_size "
    "those of one forward pass: what lies between is accumulated"
)
_PRECISION = "give precision: bfloat16 or float32"
_OPTIMIZER = "the optimizer is AdamW; give adam_beta1, adam_beta2, adam_epsilon, weight_decay"
_WORKERS = "start the workers with --workers N, or one by one with lighthouse; the recipe is the same for any number"
_CADENCE = "give the number of steps: logging_steps, eval_steps, save_steps"
_ALWAYS_LOWEST = "the best checkpoint is the one whose metric_for_best_model is lowest"
_NOT_HERE = "nothing is sent anywhere; upload output_dir/export yourself"
_STATIC = "samples are packed into blocks of data.block_size; there is nothing to set"

_INSTEAD: dict[str, str] = {
    "gradient_accumulation_steps": _ACCUMULATION,
    "accumulation_steps": _ACCUMULATION,
    "grad_accum": _ACCUMULATION,
    "batch_size": "it is global_batch_size",
    "train_batch_size": "it is global_batch_size",
    "per_device_batch_size": "it is per_device_train_batch_size",
    "micro_batch_size": "it is per_device_train_batch_size",
    "per_device_eval_batch_size": "evaluation takes a few samples at a time; drop it",
    "eval_batch_size": "evaluation takes a few samples at a time; drop it",
    "eval_accumulation_steps": "evaluation takes a few samples at a time; drop it",
    "auto_find_batch_size": "lower per_device_train_batch_size where memory is short",
    "lr": "it is learning_rate",
    "epochs": "it is num_train_epochs",
    "num_epochs": "it is num_train_epochs",
    "n_epochs": "it is num_train_epochs",
    "steps": "it is max_steps",
    "num_steps": "it is max_steps",
    "total_steps": "it is max_steps",
    "num_train_steps": "it is max_steps",
    "train_tokens": "it is max_tokens",
    "total_tokens": "it is max_tokens",
    "warmup_ratio": "give warmup_steps, a number of steps",
    "scheduler": "it is lr_scheduler_type",
    "lr_scheduler": "it is lr_scheduler_type",
    "schedule": "it is lr_scheduler_type",
    "lr_scheduler_kwargs": "give lr_scheduler_type; its shapes have no settings",
    "fp16": f"float16 is not offered; {_PRECISION}",
    "bf16": _PRECISION,
    "tf32": _PRECISION,
    "half_precision_backend": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "dtype": f"{_PRECISION}; the export keeps the dtype that its weights came in",
    "torch_dtype": f"{_PRECISION}; the export keeps the dtype that its weights came in",
    "mixed_precision": _PRECISION,
    "optim": _OPTIMIZER,
    "optimizer": _OPTIMIZER,
    "optim_args": _OPTIMIZER,
    "adafactor": _OPTIMIZER,
    "beta1": "it is adam_beta1",
    "beta2": "it is adam_beta2",
    "eps": "it is adam_epsilon",
    "epsilon": "it is adam_epsilon",
    "clip": "it is max_grad_norm",
    "grad_clip": "it is max_grad_norm",
    "gradient_clipping": "it is max_grad_norm",
    "clip_grad_norm": "it is max_grad_norm",
    "data_seed": "it is seed: one seed draws everything",
    "random_seed": "it is seed",
    "logging_dir": "figures stand in output_dir/metrics.jsonl, and TensorBoard's in output_dir; see report_to",
    "logging_strategy": _CADENCE,
    "eval_strategy": _CADENCE,
    "evaluation_strategy": _CADENCE,
    "save_strategy": _CADENCE,
    "eval_delay": "the held-out part is evaluated at the start, every eval_steps, and at the end",
    "eval_on_start": "the held-out part is always evaluated at the start; eval_steps: 0 never evaluates",
    "do_train": "drop it: `stillhouse student train` trains",
    "do_eval": "give eval_steps, and 0 never to evaluate",
    "do_predict": "drop it; `stillhouse eval` evaluates a student",
    "greater_is_better": _ALWAYS_LOWEST,
    "save_only_model": "a checkpoint is complete, so that it can be resumed; output_dir/export holds the model alone",
    "overwrite_output_dir": "name another output_dir, or give resume: true to go on",
    "resume_from_checkpoint": "it is resume: true, which takes the newest checkpoint",
    "ignore_data_skip": "a resumed run goes on in the order of samples where it was; drop it",
    "num_workers": _WORKERS,
    "workers": _WORKERS,
    "world_size": _WORKERS,
    "nproc_per_node": _WORKERS,
    "local_rank": _WORKERS,
    "ddp_backend": _WORKERS,
    "ddp_timeout": "it is step_timeout_seconds",
    "deepspeed": "each worker holds the whole student; drop it",
    "fsdp": "each worker holds the whole student; drop it",
    "fsdp_config": "each worker holds the whole student; drop it",
    "no_cuda": "give device: cpu",
    "use_cpu": "give device: cpu",
    "dataloader_num_workers": "give prefetch_steps: answers are fetched ahead, and samples are read from memory maps",
    "dataloader_prefetch_factor": "it is prefetch_steps",
    "dataloader_drop_last": "a step takes the next samples of one endless order; drop it",
    "group_by_length": _STATIC,
    "packing": _STATIC,
    "max_seq_length": "it is data.block_size",
    "max_length": "it is data.block_size",
    "seq_len": "it is data.block_size",
    "sequence_length": "it is data.block_size",
    "dataset_name": "name it in data.sources, as hub:OWNER/NAME",
    "dataset": "name it in data.sources",
    "dataset_text_field": "it is data.text_column",
    "train_file": "name it in data.sources",
    "validation_file": "name it in data.held_out_sources",
    "validation_split_percentage": "it is data.held_out_fraction, such as 0.05",
    "assistant_only_loss": "it is data.learn: assistant",
    "completion_only_loss": "it is data.learn: assistant",
    "model_name_or_path": "it is student.model",
    "model": "it is student.model; the teacher's is told to its service",
    "student_model": "it is student.model",
    "teacher_model": "the teacher is a service: start it, and give its address as teacher",
    "teacher_model_name_or_path": "the teacher is a service: start it, and give its address as teacher",
    "tokenizer_name": "it is tokenizer",
    "gradient_checkpointing_kwargs": "give student.gradient_checkpointing: true",
    "activation_checkpointing": "it is student.gradient_checkpointing",
    "compile": "it is student.torch_compile",
    "torch_compile_backend": "give student.torch_compile: true",
    "torch_compile_mode": "give student.torch_compile: true",
    "attention_dropout": "it is student.dropout",
    "use_peft": "give student.lora_r",
    "lora_rank": "it is student.lora_r",
    "tau": "it is temperature",
    "kd_temperature": "it is temperature",
    "kd_alpha": "it is alpha, here the weight of cross-entropy; other tools use the opposite",
    "kl_weight": "it is 1 - alpha; give alpha, the weight of cross-entropy",
    "ce_weight": "it is alpha",
    "beta": "it is jsd_beta, with loss: jsd",
    "lmbda": "training on the student's own text is a loop of your own; see docs/training.md",
    "label_smoothing_factor": "the teacher's distribution is what smooths labels; drop it",
    "loss_type": "it is loss",
    "kd_loss": "it is loss",
    "top_k": "give encoding: top_k:K",
    "push_to_hub": _NOT_HERE,
    "hub_model_id": _NOT_HERE,
    "hub_token": _NOT_HERE,
    "wandb_project": "set WANDB_PROJECT, as every WANDB_* variable is honoured, and report_to: [wandb]",
    "early_stopping": "it is early_stopping_patience",
    "patience": "it is early_stopping_patience",
    "smoke": "it is smoke_steps",
    "plan": "it is a flag of the command: stillhouse student train RECIPE --plan",
}


def instead(name: str) -> str | None:
    """Return what to write instead of a key of another trainer, None where it is none that we know."""
    return _INSTEAD.get(name)


def nearest(name: str) -> str | None:
    """Return the same for the nearest such key, None where none is near: misspelt foreign keys are unknown too."""
    near = difflib.get_close_matches(name, _INSTEAD, n=1, cutoff=0.85)
    return f"if {near[0]} is meant: {_INSTEAD[near[0]]}" if near else None
