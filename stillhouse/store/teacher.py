"""A store as a teacher: it answers what was captured, with nobody asked; and a store that stands before a service.

A sequence's `sample_index` says which row may answer it, and the row's own content decides: its token ids, segments
and positions must be those that are asked about, so that a row of another corpus never answers. Knows nothing of files.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import structlog
import torch

from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import ConfigurationError, EncodingNotOfferedError, StoreError
from stillhouse.exchange import check_fingerprint
from stillhouse.payloads import CandidateLogits, DenseLogits, OutputHead, Payload, TopKLogits
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from stillhouse.store.reader import Store, StorePart
from stillhouse.store.rows import StoredSample

_log = structlog.get_logger(__name__)


class StoreTeacher(TeacherLogitsProvider):
    """Answers from a store alone; several threads may share one.

    What the teacher said of itself it says too, its tokens included; of encodings it offers the one that is stored.
    """

    def __init__(self, store: Store) -> None:
        plan = store.manifest.plan
        self.store = store
        self.encoding: Encoding = store.encoding
        self.temperature = plan.temperature
        self.vocabulary_size = plan.vocabulary_size
        self._description = store.describe()

    def describe(self) -> TeacherDescription:
        """Return the teacher's own description, as it stands in the store."""
        return self._description

    def answer(self, request: LogitsRequest) -> Answer:
        """Answer from the rows that the sequences name.

        Raises:
            FingerprintMismatchError: the answers of another teacher are wanted.
            StoreError: answers of another form than the stored ones are wanted, a sequence names no row or one of
                other content, or the row's shard is damaged.
        """
        check_fingerprint(self._description.fingerprint, request.expected_fingerprint)
        if words := self.difference(request.encoding, request.temperature, request.vocabulary_size):
            raise StoreError(f"the store {self.store.address} does not answer this: {words}")
        payloads = []
        for index, sequence in enumerate(request.sequences):
            payload = self.find(sequence, request)
            if payload is None:
                place = "no sample" if sequence.sample_index is None else f"{sequence.sample_index}"
                raise StoreError(
                    f"the store {self.store.address} holds no answer to sequences[{index}], which names {place}: ask "
                    "about the store's own samples, or name a teacher for what is missing"
                )
            payloads.append(payload)
        return Answer(tuple(payloads), self._description.fingerprint, store_hits=len(payloads))

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return the head that was captured with hidden states.

        Raises:
            EncodingNotOfferedError: the store holds none.
        """
        head = self.store.output_head()
        if head is None:
            raise EncodingNotOfferedError(f"the store {self.store.address} holds {self._stored}, and so no output head")
        return head if value_type is None else head.to(dtype=getattr(torch, value_type), device=torch.device("cpu"))

    def difference(self, encoding: Encoding, temperature: float, vocabulary_size: int) -> str:
        """Say what keeps the store from answers of this form, both sides named; empty where nothing does.

        Hidden states hold at any temperature and for any N; logits at any temperature, and for a smaller N; a top-k,
        or candidates, at their own temperature and at 1, whose statistics they hold besides; draws at their own.
        """
        if encoding != self.encoding:
            return f"encoding {format_encoding(encoding)} is asked for, and it holds {self._stored}"
        size = vocabulary_size or self._description.vocabulary_size
        fits = size <= self.vocabulary_size if isinstance(encoding, Dense) else size == self.vocabulary_size
        if not (fits or isinstance(encoding, Hidden)):
            return f"a vocabulary of {size} ids is asked for, and its answers cover {self.vocabulary_size}"
        held = {self.temperature} if isinstance(encoding, Sampled) else {self.temperature, 1.0}
        if isinstance(encoding, TopK | Candidates | Sampled) and temperature not in held:
            return f"temperature {temperature:g} is asked for, and it holds {self._stored} at {self.temperature:g}"
        return ""

    def find(self, sequence: Sequence, request: LogitsRequest) -> Payload | None:
        """Return the answer to one sequence of a request whose form fits; None where the store has no such row.

        Raises:
            StoreError: the row's shard is damaged.
        """
        place = sequence.sample_index
        part = None if place is None else self._part(place[0])
        if place is None or part is None or not part.has(place[1]):
            return None
        stored = part[place[1]]
        if not _is_about(stored, sequence):
            return None
        return _in_form(stored.payload, request.temperature, request.vocabulary_size)

    def _part(self, name: str) -> StorePart | None:
        return {"train": self.store.train, "held_out": self.store.held_out}.get(name)

    @property
    def _stored(self) -> str:
        return format_encoding(self.encoding)


class StoreFirst(TeacherLogitsProvider):
    """Answers from a store what it holds, and asks a service for the rest: rows, a held-out part, another encoding.

    A row that cannot be read, of a damaged shard, is told of once in the log, and the service is asked for it too.

    Args:
        store: what is asked first.
        service: the same teacher, live.
    """

    def __init__(self, store: StoreTeacher, service: TeacherLogitsProvider) -> None:
        self._store = store
        self._service = service
        self._told: set[str] = set()
        self._telling = threading.Lock()

    def describe(self) -> TeacherDescription:
        """Return what the service says of itself."""
        return self._service.describe()

    def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request, its parts in order whoever gave them.

        Raises:
            FingerprintMismatchError: the answers of another teacher are wanted, or the service is another.
            TeacherError: the service has no answer to what the store misses.
        """
        ours = self._store.describe().fingerprint
        check_fingerprint(ours, request.expected_fingerprint)
        found = self._find_all(request)
        missing = tuple(one for one, payload in zip(request.sequences, found, strict=True) if payload is None)
        hits = len(found) - len(missing)
        if not missing:
            return Answer(tuple(payload for payload in found if payload is not None), ours, store_hits=hits)
        answer = self._service.answer(replace(request, sequences=missing, expected_fingerprint=ours))
        rest = iter(answer.payloads)
        payloads = tuple(next(rest) if payload is None else payload for payload in found)
        return replace(answer, payloads=payloads, store_hits=hits)

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return the store's head, or the service's where it holds none."""
        if isinstance(self._store.encoding, Hidden):
            return self._store.output_head(value_type)
        return self._service.output_head(value_type)

    def _find_all(self, request: LogitsRequest) -> list[Payload | None]:
        if self._store.difference(request.encoding, request.temperature, request.vocabulary_size):
            return [None] * len(request.sequences)
        return [self._find(sequence, request) for sequence in request.sequences]

    def _find(self, sequence: Sequence, request: LogitsRequest) -> Payload | None:
        try:
            return self._store.find(sequence, request)
        except StoreError as error:
            with self._telling:
                is_new = str(error) not in self._told
                self._told.add(str(error))
            if is_new:
                _log.warning("store_is_damaged", reason=str(error), remedy="the service is asked for what it held")
            return None


def check_same_teacher(store: StoreTeacher, service: TeacherDescription) -> None:
    """See that a service is the teacher whose answers a store holds, to the bit.

    Raises:
        ConfigurationError: it is another, or has other settings.
    """
    stored = store.describe()
    for name in ("weights_fingerprint", "tokenizer_fingerprint", "mode", "compute_dtype", "fingerprint"):
        ours, theirs = getattr(stored, name), getattr(service, name)
        if ours != theirs:
            raise ConfigurationError(
                f"the store {store.store.address} holds answers of a teacher whose {name.replace('_', ' ')} is {ours} "
                f"({stored.model}), and that of the teacher at work is {theirs} ({service.model}): serve the one that "
                "was captured, with the settings that it had, or drop one of the two"
            )


def _is_about(stored: StoredSample, sequence: Sequence) -> bool:
    """Tell whether a row is about these very ids, segments and positions."""
    size = len(sequence.token_ids)
    if len(stored.token_ids) != size or not np.array_equal(stored.token_ids, np.asarray(sequence.token_ids)):
        return False
    if (sequence.segment_lengths or (size,)) != (tuple(stored.segment_lengths) or (size,)):
        return False
    return np.array_equal(np.flatnonzero(stored.mask), np.asarray(sequence.position_indices()))


def _in_form(payload: Payload, temperature: float, vocabulary_size: int) -> Payload:
    """Return a stored payload as a teacher would have given it at this temperature, for this N."""
    if isinstance(payload, DenseLogits) and 0 < vocabulary_size < payload.vocabulary_size:
        return DenseLogits(payload.logits[:, :vocabulary_size].contiguous())
    if isinstance(payload, TopKLogits | CandidateLogits) and payload.temperature != temperature:
        return replace(
            payload,
            tempered_log_normalizer=payload.log_normalizer,
            tempered_log_tail_mass=payload.log_tail_mass,
            temperature=temperature,
        )
    return payload
