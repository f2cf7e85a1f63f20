"""A model is sized, and known again, by its folder alone: counts and fingerprints are those of the loaded one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from stillhouse.disk import free_disk
from stillhouse.errors import ConfigurationError
from stillhouse.fingerprint import weights_fingerprint
from stillhouse.fixtures import FixtureTeacher
from stillhouse.models import load_causal_lm
from stillhouse.request import TeacherDescription
from student_worker.planning.model_size import hollow_model, measure
from student_worker.planning.resources import free_memory
from student_worker.planning.same_weights import check_not_its_teacher, stored_fingerprint
from student_worker.planning.sketch import sketch_student, sketch_teacher
from student_worker.recipe.student import CausalLMSpec
from tests.tiny_models import tiny_model

BLOCK = 16


def teacher_of(folder: Path, dtype: str = "float32") -> TeacherDescription:
    model = load_causal_lm(folder, dtype=dtype)  # type: ignore[arg-type]  # one of its names
    return dataclasses.replace(
        FixtureTeacher(300).describe(),
        model=str(folder),
        hidden_size=32,
        compute_dtype=dtype,
        weights_fingerprint=weights_fingerprint(model.state_dict()),
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral"])
def test_a_hollow_model_has_the_counts_and_the_fingerprint_of_the_loaded_one(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture).save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path)
    hollow = hollow_model(tmp_path)
    assert measure(hollow, BLOCK).parameters == sum(parameter.numel() for parameter in loaded.parameters())
    # Experts are stored under other names than they are loaded: nothing is claimed then.
    expected = "" if architecture == "mixtral" else weights_fingerprint(loaded.state_dict())
    assert stored_fingerprint(tmp_path, hollow, loaded.dtype) == expected


def test_flops_are_two_for_each_product_of_weights_and_of_attention(tiny_llama_folder: Path) -> None:
    size = measure(hollow_model(tiny_llama_folder), BLOCK)
    layers, width, inner, heads, vocabulary = 2, 32, 64, 16, 300
    products = layers * (2 * width * width + 2 * width * heads + 3 * width * inner) + width * vocabulary
    attention = layers * 2 * BLOCK * width
    assert size.flops_per_token == 2 * (products + attention)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_students_weights_are_known_for_its_teachers_in_any_dtype_and_folder(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path / "teacher")
    shutil.copytree(tmp_path / "teacher", tmp_path / "copy")
    teacher = teacher_of(tmp_path / "teacher", dtype)
    for kept in (None, 2):
        with pytest.raises(ConfigurationError, match="the same weights"):
            check_not_its_teacher(tmp_path / "copy", teacher, kept_layers=kept, name="copy")
    check_not_its_teacher(tmp_path / "copy", teacher, kept_layers=1, name="copy")
    other = dataclasses.replace(teacher, weights_fingerprint="0" * 32)
    check_not_its_teacher(tmp_path / "copy", other, kept_layers=None, name="copy")


def test_a_cut_student_is_sized_before_it_is_made(tiny_llama_folder: Path) -> None:
    teacher = teacher_of(tiny_llama_folder)
    whole = sketch_teacher(teacher, block_tokens=BLOCK)
    assert whole is not None
    sketches = [
        sketch_student(CausalLMSpec.model_validate({"kind": "causal_lm", **keys}), teacher, block_tokens=BLOCK, seed=1)
        for keys in ({"keep_layers": "1"}, {"keep_most_important": 1})
    ]
    assert sketches[0].size == sketches[1].size
    assert sketches[0].size.parameters < whole.parameters
    assert sketches[0].export_bytes == 4 * sketches[0].size.parameters
    assert (sketches[0].vocabulary_size, sketches[0].max_positions) == (300, 512)
    assert sketch_teacher(dataclasses.replace(teacher, model="./nowhere"), block_tokens=BLOCK) is None


def test_what_is_free_is_told_for_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") > 0
    assert free_memory(torch.device("cpu")) > 0
