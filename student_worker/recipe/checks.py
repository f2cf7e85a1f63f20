"""What keys of a recipe must hold together, and which of them have no effect beside the others.

A key without effect is refused, since whoever wrote it believed in one. One that says what is so anyway (nothing, off,
an empty list) is let be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.encoding_text import parse_encoding
from stillhouse.encodings import Candidates, Dense, Hidden, TopK
from student_worker.recipe.encoding_choice import AUTO

if TYPE_CHECKING:
    from student_worker.recipe.schema import Recipe

LENGTHS = ("max_steps", "max_tokens", "num_train_epochs")


@dataclass(frozen=True, slots=True)
class _Needs:
    """What keys need in order to have an effect, in words and as a question to the recipe."""

    keys: tuple[str, ...]
    words: str
    holds: Callable[[Recipe], bool]


def holds_out(recipe: Recipe) -> bool:
    """Tell whether any part of the data is held out of training; of a store's own that is known once it is open."""
    data = recipe.data
    return recipe.reads_store or bool(data.held_out_fraction or data.held_out_samples or data.held_out_sources)


def _evaluates(recipe: Recipe) -> bool:
    return holds_out(recipe) and recipe.eval_steps != 0


def _leaves_ids_out(recipe: Recipe) -> bool:
    if recipe.encoding == AUTO:
        return recipe.store is not None  # what `auto` comes to is the store's to say
    return isinstance(parse_encoding(recipe.encoding), TopK | Candidates)


_HELD_OUT = "a held-out part (data.held_out_fraction, held_out_samples or held_out_sources)"
TEACHER_KEYS = (
    "teacher_token",
    "teacher_ca",
    "teacher_certificate",
    "teacher_key",
    "teacher_wait_seconds",
    "request_timeout_seconds",
)
"""What says how a live teacher is spoken with."""

HELD_OUT_KEYS = (
    "eval_steps",
    "eval_encoding",
    "eval_memory_bytes",
    "metric_for_best_model",
    "load_best_model_at_end",
    "early_stopping_patience",
    "early_stopping_threshold",
)
"""What says how the held-out part is looked at."""

ASKING_KEYS = ("temperature", "loss", "jsd_beta", "encoding", "top_k_tail", "prefetch_steps", "prefetch_bytes")
"""What says what is asked of a teacher for a step, and what is learnt from its answers."""

_EVALUATED = f"{_HELD_OUT} that is evaluated (eval_steps other than 0)"

_NEEDS = (
    _Needs(TEACHER_KEYS, "a teacher; a store alone asks nobody", lambda recipe: recipe.teacher is not None),
    _Needs(("jsd_beta",), "loss: jsd", lambda recipe: recipe.loss == "jsd"),
    _Needs(("top_k_tail",), "an encoding that leaves ids out: top_k or candidates", _leaves_ids_out),
    _Needs(("eval_steps",), _HELD_OUT, holds_out),
    _Needs(
        ("eval_encoding", "eval_memory_bytes", "metric_for_best_model", "load_best_model_at_end"),
        _EVALUATED,
        _evaluates,
    ),
    _Needs(
        ("early_stopping_patience",),
        f"{_HELD_OUT} that is evaluated while the run goes on (eval_steps above 0)",
        lambda recipe: _evaluates(recipe) and recipe.eval_steps is not None,
    ),
    _Needs(
        ("early_stopping_threshold",),
        "early_stopping_patience",
        lambda recipe: recipe.early_stopping_patience is not None,
    ),
    _Needs(("run_name",), "report_to, or callbacks", lambda recipe: bool(recipe.report_to or recipe.callbacks)),
    _Needs(("prefetch_bytes",), "prefetch_steps above 0", lambda recipe: recipe.prefetch_steps != 0),
    _Needs(
        ("device_locks",), "device auto: another names the GPU itself", lambda recipe: recipe.device in ("auto", "cuda")
    ),
    _Needs(
        ("reserved_devices", "share_devices"),
        "device_locks: the folder in which workers share out the GPUs",
        lambda recipe: recipe.device_locks is not None,
    ),
    _Needs(
        ("worker_index",),
        "no worker_index_by_lock: it finds the number",
        lambda recipe: not recipe.worker_index_by_lock,
    ),
    _Needs(("resume",), "no smoke_steps: a smoke run begins anew", lambda recipe: recipe.smoke_steps is None),
    _Needs(("export_initial",), "no smoke_steps: it exports nothing", lambda recipe: recipe.smoke_steps is None),
)

_OFF: tuple[object, ...] = (None, False, (), 0)
"""What means the same as not to name a key at all."""


def unused_keys(recipe: Recipe) -> dict[str, str]:
    """Return the keys that have no effect in this recipe, each with what it would need."""
    return {key: needs.words for needs in _NEEDS if not needs.holds(recipe) for key in needs.keys}


def _is_given(recipe: Recipe, key: str) -> bool:
    return key in recipe.model_fields_set and getattr(recipe, key) not in _OFF


def given_of(recipe: Recipe, keys: Iterable[str]) -> list[str]:
    """Return which of some keys the recipe names, with a value that would have an effect."""
    return [key for key in keys if _is_given(recipe, key)]


def check_together(recipe: Recipe) -> None:
    """Check what one key alone cannot tell.

    Raises:
        ValueError: keys that contradict each other, or one that has no effect.
    """
    named = [name for name in LENGTHS if getattr(recipe, name) is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} all say how long to train; give one")
    _check_batch(recipe)
    _check_steps(recipe)
    for key in ("encoding", "eval_encoding"):
        text = getattr(recipe, key)
        is_whole = text == AUTO or isinstance(parse_encoding(text), Dense | Hidden)
        if recipe.loss != "forward_kl" and not is_whole:
            raise ValueError(
                f"loss {recipe.loss} needs the teacher's whole distribution, which {key} {text} does not tell; "
                f"give {key}: auto, dense or hidden"
            )
    _check_data(recipe)
    if recipe.alpha == 1 and (named := [key for key in given_of(recipe, ASKING_KEYS) if not _is_default(recipe, key)]):
        raise ValueError(
            f"{' and '.join(named)}: no effect beside alpha 1, which learns from the text alone and asks no teacher; "
            "drop it, or lower alpha"
        )
    for key, words in unused_keys(recipe).items():
        if _is_given(recipe, key):
            raise ValueError(f"{key} has no effect: it needs {words}; drop it, or give that")
    _check_files(recipe)


def _check_data(recipe: Recipe) -> None:
    if not recipe.reads_store:
        return
    data = recipe.data
    for key in type(data).model_fields:
        # A block's length can be compared with the store's.
        if (
            key not in ("sources", "block_size")
            and key in data.model_fields_set
            and getattr(data, key) not in (None, ())
        ):
            raise ValueError(
                f"data.{key} has no effect: the samples are the store's own; drop it, or name their sources "
                "(data.sources)"
            )


def _is_default(recipe: Recipe, key: str) -> bool:
    return bool(getattr(recipe, key) == type(recipe).model_fields[key].default)


def _check_files(recipe: Recipe) -> None:
    has = {key: getattr(recipe, key) is not None for key in ("teacher_certificate", "teacher_key")}
    if len(set(has.values())) > 1:
        given, missing = sorted(has, key=lambda key: not has[key])
        raise ValueError(f"{given} needs {missing}: a certificate and its private key go together")


def _check_batch(recipe: Recipe) -> None:
    size, parts = recipe.global_batch_size, recipe.micro_shards
    if parts > size:
        raise ValueError(
            f"micro_shards {parts} is more than the {size} samples of a global batch; raise global_batch_size or lower "
            "micro_shards"
        )
    largest = -(-size // parts)
    given = recipe.per_device_train_batch_size
    if given is not None and given > largest:
        raise ValueError(
            f"per_device_train_batch_size {given} has no effect: a micro-shard has at most {largest} samples "
            f"(global_batch_size {size} in {parts} micro_shards); drop it, or lower micro_shards"
        )


def _check_steps(recipe: Recipe) -> None:
    if recipe.max_steps is None:
        return
    for key, value in (("warmup_steps", recipe.warmup_steps), ("smoke_steps", recipe.smoke_steps)):
        if value is not None and value > recipe.max_steps:
            raise ValueError(f"{key} {value} is more than max_steps {recipe.max_steps}")
    check_evaluated_between(recipe, recipe.max_steps)


def check_evaluated_between(recipe: Recipe, num_steps: int) -> None:
    """Refuse early stopping where nothing is evaluated between the start and the end of so many steps.

    Raises:
        ValueError: there it could stop nothing.
    """
    every = recipe.eval_steps
    if recipe.early_stopping_patience is not None and every is not None and every >= num_steps:
        raise ValueError(
            f"early_stopping_patience has no effect: with eval_steps {every} nothing is evaluated between the start "
            f"and the end of {num_steps} steps; lower eval_steps, or drop it"
        )
