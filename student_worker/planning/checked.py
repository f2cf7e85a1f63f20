"""What every start of a run checks before any weight is loaded, and what it then knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillhouse.asking import Asking
from stillhouse.data import Order, Prepared, prepare
from stillhouse.encodings import Encoding, Hidden
from stillhouse.errors import ConfigurationError, RequestTooLongError
from stillhouse.pairing import paired_vocabulary
from stillhouse.request import TeacherDescription
from stillhouse.vocabulary import check_token_ids
from student_worker.planning.model_size import ModelSize
from student_worker.planning.sketch import Sketch, sketch_student, sketch_teacher
from student_worker.recipe.encoding_choice import choose_encoding, warn_of_noise
from student_worker.recipe.run_length import num_steps
from student_worker.recipe.schema import FixtureSpec, Recipe
from student_worker.steps import Steps
from student_worker.students.build import find_tokenizer


@dataclass(frozen=True, slots=True)
class Checked:
    """A run whose parts fit together, its student only sketched."""

    teacher: TeacherDescription
    teacher_size: ModelSize | None
    tokenizer: Any
    prepared: Prepared
    order: Order
    sketch: Sketch
    vocabulary_size: int
    num_steps: int
    steps: Steps
    asking: Asking
    eval_encoding: Encoding

    @property
    def fetches_head(self) -> bool:
        """Whether hidden states are rebuilt with the teacher's output head."""
        return any(isinstance(encoding, Hidden) for encoding in (self.asking.encoding, self.eval_encoding))


def check_run(recipe: Recipe, teacher: TeacherDescription) -> Checked:
    """Check everything that needs no weights, the cheapest first; the corpus is prepared for it.

    Raises:
        ConfigurationError: a recipe that does not fit the teacher or the data, or a student that is its own teacher.
        DataError: a corpus that cannot be used, that holds ids beyond the shared vocabulary, or whose held-out part
            shares samples with the training part.
        VocabularyMismatchError: tokenizers that cannot be paired.
    """
    _check_teacher(recipe, teacher)
    block_tokens = recipe.data.block_size
    sketch = sketch_student(recipe.student, teacher, block_tokens=block_tokens, seed=recipe.seed)
    if sketch.max_positions is not None and block_tokens > sketch.max_positions:
        raise ConfigurationError(
            f"data.block_size {block_tokens} is more than the student's max_position_embeddings "
            f"{sketch.max_positions}; lower it"
        )
    tokenizer = find_tokenizer(recipe.tokenizer, recipe.student, teacher.model)
    # A fixture's logits are of no tokenizer.
    paired = paired_vocabulary(teacher, None if isinstance(recipe.student, FixtureSpec) else tokenizer)
    vocabulary_size = min(paired, sketch.vocabulary_size)
    prepared = prepare(recipe.data, tokenizer)
    check_token_ids(prepared.manifest.max_token_id, vocabulary_size)
    train = prepared.train
    order = Order(len(train), recipe.seed, train.fingerprint)
    steps = num_steps(recipe, train, order)
    for key, value in (("warmup_steps", recipe.warmup_steps), ("smoke_steps", recipe.smoke_steps or 0)):
        if value > steps:
            raise ConfigurationError(f"{key} {value} is more than the run's {steps} steps; lower it")
    encoding = choose_encoding("encoding", recipe.encoding, teacher, vocabulary_size)
    warn_of_noise(encoding, recipe.temperature)
    return Checked(
        teacher=teacher,
        teacher_size=sketch_teacher(teacher, block_tokens=block_tokens),
        tokenizer=tokenizer,
        prepared=prepared,
        order=order,
        sketch=sketch,
        vocabulary_size=vocabulary_size,
        num_steps=steps,
        steps=Steps(train, order, recipe.global_batch_size, recipe.micro_shards),
        asking=Asking(encoding, recipe.temperature, vocabulary_size, teacher.fingerprint),
        eval_encoding=choose_encoding("eval_encoding", recipe.eval_encoding, teacher, vocabulary_size),
    )


def _check_teacher(recipe: Recipe, teacher: TeacherDescription) -> None:
    # Again once the shared vocabulary is known; what needs only the teacher is said before anything else.
    choose_encoding("encoding", recipe.encoding, teacher, teacher.vocabulary_size)
    choose_encoding("eval_encoding", recipe.eval_encoding, teacher, teacher.vocabulary_size)
    if recipe.data.block_size > teacher.limits.max_sequence_tokens:
        raise RequestTooLongError(
            f"block_size {recipe.data.block_size} is over the teacher's limit of "
            f"{teacher.limits.max_sequence_tokens} tokens a sequence; lower it"
        )
