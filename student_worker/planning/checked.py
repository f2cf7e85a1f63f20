"""What every start of a run checks before any weight is loaded, and what it then knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stillhouse.asking import Asking
from stillhouse.data import Order, prepare
from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Encoding, Hidden
from stillhouse.errors import ConfigurationError, RequestTooLongError
from stillhouse.pairing import paired_vocabulary
from stillhouse.request import TeacherDescription
from stillhouse.store.teacher import StoreTeacher
from stillhouse.vocabulary import check_token_ids
from student_worker.corpus import Corpus, prepared_corpus, stored_corpus
from student_worker.planning.model_size import ModelSize
from student_worker.planning.sketch import Sketch, sketch_student, sketch_teacher
from student_worker.planning.stored import (
    check_size,
    check_stored,
    check_tokenizer,
    compare_data,
    eval_temperature,
    stored_eval_encoding,
)
from student_worker.recipe.checks import check_evaluated_between
from student_worker.recipe.encoding_choice import choose_encoding, warn_of_noise
from student_worker.recipe.run_length import num_steps
from student_worker.recipe.schema import FixtureSpec, Recipe
from student_worker.steps import Steps
from student_worker.students.build import find_tokenizer


@dataclass(frozen=True, slots=True)
class Checked:
    """A run whose parts fit together, its student only sketched.

    `eval_asking` is how the held-out part is asked about; `store` the address that answers are read from, if any.
    """

    teacher: TeacherDescription
    teacher_size: ModelSize | None
    tokenizer: Any
    corpus: Corpus
    order: Order
    sketch: Sketch
    vocabulary_size: int
    num_steps: int
    steps: Steps
    asking: Asking
    eval_asking: Asking
    store: str | None

    @property
    def fetches_head(self) -> bool:
        """Whether hidden states are rebuilt with the teacher's output head."""
        return any(isinstance(encoding, Hidden) for encoding in (self.asking.encoding, self.eval_asking.encoding))


def check_run(recipe: Recipe, teacher: TeacherDescription, stored: StoreTeacher | None = None) -> Checked:
    """Check everything that needs no weights, the cheapest first; the corpus is prepared for it.

    Args:
        recipe: of the run.
        teacher: what it says of itself, or a store of its answers does.
        stored: that store.

    Raises:
        ConfigurationError: a recipe that does not fit the teacher, its store or the data, or a student that is its own
            teacher.
        DataError: a corpus that cannot be used, that holds ids beyond the shared vocabulary, or whose held-out part
            shares samples with the training part.
        VocabularyMismatchError: tokenizers that cannot be paired.
    """
    block_tokens = recipe.data.block_size
    if stored is not None:
        check_stored(recipe, stored)
        block_tokens = stored.store.train.block_size
    _check_teacher(recipe, teacher, stored, block_tokens)
    sketch = sketch_student(recipe.student, teacher, block_tokens=block_tokens, seed=recipe.seed)
    if sketch.max_positions is not None and block_tokens > sketch.max_positions:
        raise ConfigurationError(
            f"data.block_size {block_tokens} is more than the student's max_position_embeddings "
            f"{sketch.max_positions}; lower it"
        )
    tokenizer = find_tokenizer(recipe.tokenizer, recipe.student, teacher.model)
    if stored is not None:
        check_tokenizer(tokenizer, stored.store)
    # A fixture's logits are of no tokenizer.
    paired = paired_vocabulary(teacher, None if isinstance(recipe.student, FixtureSpec) else tokenizer)
    vocabulary_size = min(paired, sketch.vocabulary_size)
    corpus = _open_corpus(recipe, tokenizer, stored)
    train = corpus.train
    check_token_ids(train.max_token_id, vocabulary_size)
    order = Order(len(train), recipe.seed, train.fingerprint)
    steps = num_steps(recipe, train, order)
    for key, value in (("warmup_steps", recipe.warmup_steps), ("smoke_steps", recipe.smoke_steps or 0)):
        if value > steps:
            raise ConfigurationError(f"{key} {value} is more than the run's {steps} steps; lower it")
    try:
        check_evaluated_between(recipe, steps)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    encoding, eval_encoding = _choose_encodings(recipe, teacher, stored, vocabulary_size)
    warn_of_noise(encoding, recipe.temperature)
    asking = Asking(encoding, recipe.temperature, vocabulary_size, teacher.fingerprint)
    at = eval_temperature(stored, eval_encoding)
    return Checked(
        teacher=teacher,
        teacher_size=sketch_teacher(teacher, block_tokens=block_tokens),
        tokenizer=tokenizer,
        corpus=corpus,
        order=order,
        sketch=sketch,
        vocabulary_size=vocabulary_size,
        num_steps=steps,
        steps=Steps(train, order, recipe.global_batch_size, recipe.micro_shards),
        asking=asking,
        # Past the cache, so that held-out answers push no training answers out.
        eval_asking=replace(asking, encoding=eval_encoding, temperature=at, cache_mode="bypass"),
        store=None if stored is None else stored.store.address,
    )


def _check_teacher(recipe: Recipe, teacher: TeacherDescription, stored: StoreTeacher | None, block_tokens: int) -> None:
    # Again once the shared vocabulary is known; what needs only the teacher is said before anything else.
    size = stored.vocabulary_size if stored is not None else teacher.vocabulary_size
    _choose_encodings(recipe, teacher, stored, size)
    if recipe.teacher is not None and block_tokens > teacher.limits.max_sequence_tokens:
        raise RequestTooLongError(
            f"block_size {block_tokens} is over the teacher's limit of "
            f"{teacher.limits.max_sequence_tokens} tokens a sequence; lower it"
        )


def _choose_encodings(
    recipe: Recipe, teacher: TeacherDescription, stored: StoreTeacher | None, vocabulary_size: int
) -> tuple[Encoding, Encoding]:
    """Return what is learnt from and what is evaluated with: with a store, what it holds."""
    if stored is None:
        encoding = choose_encoding("encoding", recipe.encoding, teacher, vocabulary_size)
        return encoding, choose_encoding("eval_encoding", recipe.eval_encoding, teacher, vocabulary_size)
    check_size(stored, vocabulary_size)
    if recipe.teacher is not None:
        choose_encoding("encoding", format_encoding(stored.encoding), teacher, vocabulary_size)
    held = stored_eval_encoding(recipe.eval_encoding, stored, has_teacher=recipe.teacher is not None)
    return stored.encoding, held or choose_encoding("eval_encoding", recipe.eval_encoding, teacher, vocabulary_size)


def _open_corpus(recipe: Recipe, tokenizer: Any, stored: StoreTeacher | None) -> Corpus:
    if stored is not None and recipe.reads_store:
        return stored_corpus(stored.store)
    prepared = prepare(recipe.data, tokenizer)
    if stored is not None:
        compare_data(prepared, stored.store, has_teacher=recipe.teacher is not None)
    return prepared_corpus(prepared)
