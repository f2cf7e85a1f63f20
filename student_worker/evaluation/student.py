"""Evaluates a finished student on a corpus: beside a teacher, live or from a store, or by itself.

The figures are those of the trainer's own evaluation, by the same code over the same samples: an export in the dtype
that it was trained in has them to the bit. Knows nothing of command lines; who answers is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stillhouse.asking import Asking
from stillhouse.cli.named_tokenizer import open_tokenizer
from stillhouse.data import DataSpec, prepare
from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Encoding, Hidden
from stillhouse.errors import ConfigurationError, RequestTooLongError
from stillhouse.kd.divergences import FORWARD_KL, Divergence
from stillhouse.models import pick_device
from stillhouse.pairing import paired_vocabulary
from stillhouse.payloads import OutputHead
from stillhouse.providers import TeacherLogitsProvider
from stillhouse.request import TeacherDescription
from stillhouse.store.teacher import StoreTeacher
from stillhouse.version import __version__
from stillhouse.vocabulary import check_token_ids, tokenizer_tokens
from student_worker.corpus import Corpus, Samples, prepared_corpus, stored_corpus
from student_worker.evaluation.evaluate import Evaluator
from student_worker.evaluation.plain import evaluate_alone, nothing_to_predict
from student_worker.planning.stored import (
    check_size,
    check_tokenizer,
    check_whole,
    compare_data,
    eval_temperature,
    stored_eval_encoding,
)
from student_worker.recipe.encoding_choice import choose_encoding
from student_worker.students.base import Student
from student_worker.students.causal_lm import CausalLMStudent
from student_worker.verbs.open_model import open_model


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be evaluated, on what; `part` None is what is held out, else all there is.

    Without `data` the text is that of the samples in `stored`, which answers for its teacher.
    `objective` is a run's: alpha and the divergence that 1 - alpha weighs. Without one no `loss` is told.
    """

    student: str
    data: DataSpec | None
    stored: StoreTeacher | None = None
    revision: str | None = None
    part: Literal["train", "held_out"] | None = None
    tokenizer: str | None = None
    encoding: str = "auto"
    device: str = "auto"
    objective: tuple[float, Divergence] | None = None


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who answers: a live service, or whatever else gives a `TeacherLogitsProvider`, and what it says of itself.

    `is_live`: whether it can be asked for more than a store holds.
    """

    provider: TeacherLogitsProvider
    description: TeacherDescription
    is_live: bool = True


def evaluate_student(question: Question, teacher: Teacher | None) -> dict[str, Any]:
    """Return the report, as JSON holds it; `figures` in nats, perplexities exp of cross-entropies.

    Raises:
        ConfigurationError: a student, tokenizer, part or encoding that cannot be used.
        DataError: a corpus that cannot be used, or with nothing to predict in it.
        VocabularyMismatchError: a teacher whose tokenizer is another.
        TeacherError: the teacher has no answer.
    """
    device = pick_device(question.device)
    name = _of_a_run_its_export(question.student)
    tokenizer = open_tokenizer(question.tokenizer or name, None if question.tokenizer else question.revision)
    if question.stored is not None:
        check_tokenizer(tokenizer, question.stored.store)
    size = len(tokenizer_tokens(tokenizer))
    if teacher is not None:
        size = min(size, _check_teacher(question, teacher, tokenizer))
    corpus = _open_corpus(question, tokenizer, has_teacher=teacher is not None and teacher.is_live)
    samples = _choose_part(corpus, question.part)
    student = _open_student(name, question.revision, device, tokenizer)
    size = min(size, student.vocabulary_size)
    check_token_ids(samples.max_token_id, size)
    report: dict[str, Any] = {
        "version": __version__,
        "student": question.student,
        "student_parameters": student.num_parameters,
        "teacher": teacher.description.model if teacher else None,
        "teacher_weights": teacher.description.weights_fingerprint if teacher else None,
        "data": {
            "sources": _sources(question),
            "part": samples.name,
            "samples": len(samples),
            "tokens": samples.part.num_tokens,
            "fingerprint": samples.fingerprint,
        },
        "vocabulary_size": size,
        "encoding": None,
        "device": str(device),
    }
    if teacher is None:
        return {**report, "figures": evaluate_alone(student, samples, size).as_json()}
    encoding = _choose_encoding(question, teacher, size)
    asking = Asking(
        encoding, eval_temperature(question.stored, encoding), size, teacher.description.fingerprint, "bypass"
    )
    figures = _beside_teacher(student, samples, teacher, asking, question.objective)
    return {**report, "encoding": format_encoding(encoding), "figures": figures}


def _beside_teacher(
    student: Student,
    samples: Samples,
    teacher: Teacher,
    asking: Asking,
    objective: tuple[float, Divergence] | None,
) -> dict[str, Any]:
    head: OutputHead | None = None
    if isinstance(asking.encoding, Hidden):
        head = teacher.provider.output_head().to(dtype=torch.float32, device=student.device)
    alpha, divergence = objective or (0.0, FORWARD_KL)
    evaluator = Evaluator(samples, teacher.provider.answer, asking, 0, head, alpha, divergence, part=samples.name)
    evaluation = evaluator.evaluate(student)
    if evaluation is None:
        raise nothing_to_predict(samples)
    figures = evaluation.as_json()
    if objective is None:
        del figures["loss"]
    return figures


def _check_teacher(question: Question, teacher: Teacher, tokenizer: Any) -> int:
    """Refuse, before any weight is loaded, what no evaluation could be made of; return N."""
    told = teacher.description
    stored = question.stored
    _choose_encoding(question, teacher, told.vocabulary_size if stored is None else stored.vocabulary_size)
    if teacher.is_live and question.data is not None and question.data.block_size > told.limits.max_sequence_tokens:
        raise RequestTooLongError(
            f"block_size {question.data.block_size} is over the teacher's limit of "
            f"{told.limits.max_sequence_tokens} tokens a sequence; lower it"
        )
    return paired_vocabulary(told, tokenizer)


def _choose_encoding(question: Question, teacher: Teacher, vocabulary_size: int) -> Encoding:
    if question.stored is not None:
        held = stored_eval_encoding(question.encoding, question.stored, has_teacher=teacher.is_live)
        if held is not None:
            check_size(question.stored, vocabulary_size)
            return held
    return choose_encoding("eval_encoding", question.encoding, teacher.description, vocabulary_size)


def _open_corpus(question: Question, tokenizer: Any, *, has_teacher: bool) -> Corpus:
    if question.data is None:
        if question.stored is None:
            raise ConfigurationError("neither data nor a store is named: there is nothing to evaluate on")
        check_whole(question.stored.store)
        return stored_corpus(question.stored.store)
    prepared = prepare(question.data, tokenizer)
    if question.stored is not None:
        compare_data(prepared, question.stored.store, has_teacher=has_teacher)
    return prepared_corpus(prepared)


def _sources(question: Question) -> list[str]:
    if question.data is not None:
        return list(question.data.sources)
    return [question.stored.store.address] if question.stored is not None else []


def _of_a_run_its_export(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder / "export") if (folder / "export").is_dir() and not (folder / "config.json").exists() else name


def _open_student(name: str, revision: str | None, device: torch.device, tokenizer: Any) -> CausalLMStudent:
    """Return the student in float32, as it is trained; adapters are merged into their base."""
    model, _ = open_model(name, device=device, revision=revision)
    model = model.float()
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return CausalLMStudent(model, tokenizer)


def _choose_part(corpus: Corpus, part: Literal["train", "held_out"] | None) -> Samples:
    if part == "held_out" and corpus.held_out is None:
        raise ConfigurationError(
            "part held_out: nothing is held out; give held_out_fraction, held_out_samples or held_out_sources, "
            "or evaluate on all by dropping --part"
        )
    if part == "train" or corpus.held_out is None:
        return corpus.train
    return corpus.held_out
