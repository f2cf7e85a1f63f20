"""A teacher without a model whose logits are drawn from what it reads: no two positions are alike."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK, ValueType
from stillhouse.fixtures import FixtureTeacher
from stillhouse.payloads import OutputHead, Payload
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from stillhouse.tensor_bytes import DTYPES

WIDTH = 12


class RandomTeacher(TeacherLogitsProvider):
    """Hidden states by a hash of the sequence, and a head with a bias."""

    def __init__(self, vocabulary_size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(vocabulary_size, WIDTH, generator=generator)
        self.head = OutputHead(weight, torch.randn(vocabulary_size, generator=generator), 0.7, 20.0)
        described = FixtureTeacher(vocabulary_size).describe()
        encodings = (Dense, Hidden, TopK, Sampled, Candidates)
        self._description = replace(described, fingerprint=f"random {seed}", hidden_size=WIDTH, encodings=encodings)

    def describe(self) -> TeacherDescription:
        return self._description

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        return self.head.to(dtype=DTYPES[value_type or "float32"], device=torch.device("cpu"))

    def answer(self, request: LogitsRequest) -> Answer:
        request.check(self._description)
        payloads = tuple(self._payload(sequence, request) for sequence in request.sequences)
        return Answer(payloads, self._description.fingerprint)

    def _payload(self, sequence: Sequence, request: LogitsRequest) -> Payload:
        hidden = self._hidden(sequence)
        if isinstance(request.encoding, Hidden):
            return encode_hidden(hidden, request.encoding)
        return encode_logits(
            [self.head.logits(hidden)],
            request.encoding,
            sequence=sequence,
            temperature=request.temperature,
            vocabulary_size=request.effective_vocabulary_size(self._description.vocabulary_size),
        )

    def _hidden(self, sequence: Sequence) -> Tensor:
        digest = hashlib.blake2b(repr(sequence.token_ids).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randn(sequence.num_positions, WIDTH, generator=generator)
