"""What is checked and made before the first step: teacher, tokenizer, data, student, and that they fit together.

Cheap checks come first, so that a wrong recipe is refused before any weight is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import torch

from stillhouse.data import Order, Prepared, prepare
from stillhouse.encodings import Encoding
from stillhouse.errors import ConfigurationError, RequestTooLongError
from stillhouse.request import TeacherDescription
from stillhouse.vocabulary import check_token_ids, shared_vocabulary, tokenizer_tokens
from student_worker.batches import Asking
from student_worker.encoding_choice import choose_encoding, warn_of_noise
from student_worker.recipe import FixtureSpec, Recipe
from student_worker.run_length import num_steps
from student_worker.steps import Steps
from student_worker.students.base import Student
from student_worker.students.build import build_student, find_tokenizer
from student_worker.students.importance import MEASURED_SAMPLES
from student_worker.threads import THREADS_KEY

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that a run trains with, checked."""

    teacher: TeacherDescription
    prepared: Prepared
    student: Student
    description: str
    teacher_parameters: int | None
    dropped_layers: tuple[int, ...]
    vocabulary_size: int
    num_steps: int
    steps: Steps
    asking: Asking
    eval_encoding: Encoding


def prepare_run(recipe: Recipe, teacher: TeacherDescription, device: torch.device) -> Ready:
    """Make and check everything.

    Raises:
        ConfigurationError: a recipe that does not fit the teacher.
        DataError: a corpus that cannot be used, or that holds ids beyond the shared vocabulary.
        VocabularyMismatchError: tokenizers that cannot be paired.
    """
    _check_teacher(recipe, teacher)
    tokenizer = find_tokenizer(recipe.tokenizer, recipe.student, teacher.model)
    vocabulary_size = teacher.vocabulary_size
    if teacher.tokens and not isinstance(recipe.student, FixtureSpec):
        ours = tokenizer_tokens(tokenizer)
        vocabulary_size = shared_vocabulary(teacher.tokens, ours, teacher_head_size=teacher.vocabulary_size)
    else:
        _log.warning("vocabulary_not_compared", reason="teacher or student has no tokens: sizes alone decide")
    prepared = prepare(recipe.data, tokenizer)
    train = prepared.train
    order = Order(len(train), recipe.seed, train.fingerprint)
    built = build_student(
        recipe.student,
        tokenizer=tokenizer,
        teacher_model=teacher.model,
        teacher_vocabulary_size=teacher.vocabulary_size,
        seed=recipe.seed,
        device=device,
        samples=(train[index] for index in order.sample_ids(0, min(len(train), MEASURED_SAMPLES)).tolist()),
    )
    vocabulary_size = min(vocabulary_size, built.student.vocabulary_size)
    check_token_ids(prepared.manifest.max_token_id, vocabulary_size)
    steps = num_steps(recipe, train, order)
    encoding = choose_encoding("encoding", recipe.encoding, teacher, vocabulary_size)
    warn_of_noise(encoding, recipe.temperature)
    if recipe.warmup_steps > steps:
        raise ConfigurationError(f"warmup_steps {recipe.warmup_steps} is more than the run's {steps} steps")
    return Ready(
        teacher=teacher,
        prepared=prepared,
        student=built.student,
        description=built.description,
        teacher_parameters=built.base_parameters if built.base_name == teacher.model else None,
        dropped_layers=built.dropped_layers,
        vocabulary_size=vocabulary_size,
        num_steps=steps,
        steps=Steps(train, order, recipe.global_batch_size, recipe.micro_shards),
        asking=Asking(encoding, recipe.temperature, vocabulary_size, teacher.fingerprint),
        eval_encoding=choose_encoding("eval_encoding", recipe.eval_encoding, teacher, vocabulary_size),
    )


def identity(recipe: Recipe, ready: Ready) -> dict[str, str]:
    """Return what a checkpoint, and every other worker, must agree on to be of this run."""
    named = {
        "recipe": recipe.hash,
        "data": ready.prepared.train.fingerprint,
        "teacher": ready.teacher.weights_fingerprint,
        "vocabulary size": str(ready.vocabulary_size),
        # What `auto` has come to.
        "encoding": repr(ready.asking.encoding),
        # Which layers a measurement has chosen, and what no checkpoint holds: the weights below adapters.
        "choice of dropped layers": ",".join(map(str, ready.dropped_layers)),
        "frozen weights": ready.student.frozen_fingerprint,
        THREADS_KEY: str(torch.get_num_threads()) if _bits_depend_on_threads(recipe, ready) else "",
    }
    return {name: value for name, value in named.items() if value}


def _bits_depend_on_threads(recipe: Recipe, ready: Ready) -> bool:
    return recipe.reduction == "exact" and ready.student.device.type == "cpu"


def _check_teacher(recipe: Recipe, teacher: TeacherDescription) -> None:
    # Again once the shared vocabulary is known; what needs only the teacher is said before any weight is loaded.
    choose_encoding("encoding", recipe.encoding, teacher, teacher.vocabulary_size)
    choose_encoding("eval_encoding", recipe.eval_encoding, teacher, teacher.vocabulary_size)
    if recipe.data.block_size > teacher.limits.max_sequence_tokens:
        raise RequestTooLongError(
            f"block_size {recipe.data.block_size} is over the teacher's limit of "
            f"{teacher.limits.max_sequence_tokens} tokens a sequence; lower it"
        )
