"""The smallest exact answer that a teacher offers, for whoever does not choose one.

Knows nothing of who asks.
"""

from __future__ import annotations

from typing import cast

from stillhouse.encodings import Dense, Encoding, Hidden, ValueType
from stillhouse.request import TeacherDescription


def auto_encoding(teacher: TeacherDescription, vocabulary_size: int) -> Encoding:
    """Return HIDDEN where it is offered and narrower than the vocabulary, else DENSE; either loses nothing.

    A teacher that computes in float16 sends its hidden states as float32, since bfloat16 would round them. Both forms
    are exact at every temperature.

    Args:
        teacher: what is served.
        vocabulary_size: N, how many logits of a row are learnt from.
    """
    if Hidden in teacher.encodings and teacher.hidden_size < vocabulary_size:
        return Hidden("bfloat16" if teacher.compute_dtype == "bfloat16" else "float32")
    known = teacher.compute_dtype in ("float32", "float16", "bfloat16")
    return Dense(cast("ValueType", teacher.compute_dtype) if known else "float32")
