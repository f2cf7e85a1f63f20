"""What is made before the first step, once `checked` has found that all of it fits together: the student itself.

What a run is known by, to its checkpoints and its other workers, is said here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import torch

from stillhouse.asking import Asking
from stillhouse.disk import shown
from stillhouse.request import TeacherDescription
from stillhouse.store.teacher import StoreTeacher
from student_worker.corpus import Corpus
from student_worker.elastic.threads import THREADS_KEY
from student_worker.planning.checked import Checked, check_run
from student_worker.planning.model_size import ModelSize
from student_worker.planning.plan import check_fits, make_plan
from student_worker.recipe.schema import Recipe
from student_worker.steps import Steps
from student_worker.students.base import Student
from student_worker.students.build import build_student
from student_worker.students.importance import MEASURED_SAMPLES

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that a run trains with, checked. Sizes are those of configurations; see `ModelSize`."""

    teacher: TeacherDescription
    teacher_size: ModelSize | None
    corpus: Corpus
    student: Student
    student_size: ModelSize
    description: str
    dropped_layers: tuple[int, ...]
    vocabulary_size: int
    num_steps: int
    steps: Steps
    asking: Asking
    eval_asking: Asking
    fetches_head: bool
    store: str | None

    @property
    def teacher_parameters(self) -> int | None:
        """The teacher's parameters, None where its name leads to no model from here."""
        return self.teacher_size.parameters if self.teacher_size else None


def prepare_run(
    recipe: Recipe, teacher: TeacherDescription, device: torch.device, stored: StoreTeacher | None = None
) -> Ready:
    """Check everything, then make the student. Arguments as in `check_run`.

    Raises:
        ConfigurationError: a recipe that does not fit the teacher, the data or this machine.
        DataError: a corpus that cannot be used, or that holds ids beyond the shared vocabulary.
        VocabularyMismatchError: tokenizers that cannot be paired.
    """
    checked = check_run(recipe, teacher, stored)
    plan = make_plan(recipe, checked, device)
    check_fits(plan, whole_disk=False)
    if plan.disk.free is not None and plan.disk.needed > plan.disk.free:
        _log.warning("disk_may_not_suffice", needed=shown(plan.disk.needed), free=shown(plan.disk.free))
    return _make(recipe, checked, device)


def _make(recipe: Recipe, checked: Checked, device: torch.device) -> Ready:
    train, teacher = checked.corpus.train, checked.teacher
    first_ids = checked.order.sample_ids(0, min(len(train), MEASURED_SAMPLES)).tolist()
    built = build_student(
        recipe.student,
        tokenizer=checked.tokenizer,
        teacher_model=teacher.model,
        teacher_vocabulary_size=teacher.vocabulary_size,
        seed=recipe.seed,
        device=device,
        samples=(train[index] for index in first_ids),
    )
    return Ready(
        teacher=teacher,
        teacher_size=checked.teacher_size,
        corpus=checked.corpus,
        student=built.student,
        student_size=checked.sketch.size,
        description=built.description,
        dropped_layers=built.dropped_layers,
        vocabulary_size=checked.vocabulary_size,
        num_steps=checked.num_steps,
        steps=checked.steps,
        asking=checked.asking,
        eval_asking=checked.eval_asking,
        fetches_head=checked.fetches_head,
        store=checked.store,
    )


def known_identity(recipe: Recipe, known: Checked | Ready) -> dict[str, str]:
    """Return as much of a run's identity as is known before its student is made."""
    return {
        "recipe": recipe.hash,
        "data": known.corpus.train.fingerprint,
        "teacher": known.teacher.weights_fingerprint,
        "vocabulary size": str(known.vocabulary_size),
        # What `auto` has come to.
        "encoding": repr(known.asking.encoding),
    }


def identity(recipe: Recipe, ready: Ready) -> dict[str, str]:
    """Return what a checkpoint, and every other worker, must agree on to be of this run."""
    named = {
        **known_identity(recipe, ready),
        # Which layers a measurement has chosen, and what no checkpoint holds: the weights below adapters.
        "choice of dropped layers": ",".join(map(str, ready.dropped_layers)),
        "frozen weights": ready.student.frozen_fingerprint,
        THREADS_KEY: str(torch.get_num_threads()) if _bits_depend_on_threads(recipe, ready) else "",
    }
    return {name: value for name, value in named.items() if value}


def _bits_depend_on_threads(recipe: Recipe, ready: Ready) -> bool:
    return recipe.reduction == "exact" and ready.student.device.type == "cpu"
