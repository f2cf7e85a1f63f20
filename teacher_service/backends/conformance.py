"""What every backend promises, as a suite of tests that anybody's backend can run.

    from teacher_service.backends.conformance import BackendConformance

    class TestMyBackend(BackendConformance):
        def make_backend(self) -> TeacherBackend:
            return MyBackend(...)

pytest collects the tests that the class inherits. Needs no pytest itself, and knows nothing of any one backend. Shapes:
P positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillhouse.request import All, Explicit, From, Last, Positions, Sequence
from teacher_service.backends.base import TeacherBackend

_LONGEST = 40
_HEX_DIGITS = frozenset("0123456789abcdef")


class BackendConformance:
    """The promises of `TeacherBackend`, one test each.

    Attributes:
        tolerance: what two computations of the same logits may differ by in throughput mode.
    """

    tolerance: ClassVar[float] = 1e-3
    _made: ClassVar[dict[type, TeacherBackend]] = {}

    @abstractmethod
    def make_backend(self) -> TeacherBackend:
        """Return the backend to look at; called once for each class."""

    @property
    def backend(self) -> TeacherBackend:
        """The backend, made once."""
        if type(self) not in self._made:
            self._made[type(self)] = self.make_backend()
        return self._made[type(self)]

    def test_its_description_names_all_that_an_answer_depends_on(self) -> None:
        described = self.backend.describe()
        _check(described == self.backend.describe(), "describe() says something else the second time")
        for name in ("model", "weights_fingerprint", "compute_dtype", "device_kind", "library_version", "attention"):
            _check(getattr(described, name) != "", f"{name} is empty")
        _check(described.mode in ("throughput", "deterministic"), f"mode is {described.mode!r}")
        _check(described.vocabulary_size > 0, f"vocabulary_size is {described.vocabulary_size}")
        _check(described.max_sequence_tokens > 0, f"max_sequence_tokens is {described.max_sequence_tokens}")
        digest = described.weights_fingerprint
        _check(
            len(digest) == 32 and set(digest) <= _HEX_DIGITS, f"weights_fingerprint is {digest!r}, not 32 hex digits"
        )

    def test_its_tokens_have_a_fingerprint(self) -> None:
        described = self.backend.describe()
        _check(
            bool(described.tokens) == bool(described.tokenizer_fingerprint),
            f"{len(described.tokens)} tokens with the fingerprint {described.tokenizer_fingerprint!r}: both or none",
        )

    def test_there_is_one_row_for_each_position_asked_for(self) -> None:
        for positions, expected in ((All(), 12), (Last(), 1), (From(9), 3), (Explicit((0, 5)), 2)):
            (rows,) = self.backend.forward([self._sequence(12, seed=1, positions=positions)]).rows
            _check(
                rows.dim() == 2 and len(rows) == expected, f"{positions} gave {list(rows.shape)}, not {expected} rows"
            )

    def test_its_head_gives_finite_logits_of_the_whole_vocabulary(self) -> None:
        logits = self._logits([self._sequence(12, seed=1)])[0]
        size = self.backend.describe().vocabulary_size
        _check(logits.shape == (12, size), f"head() gave {list(logits.shape)} for 12 rows of a vocabulary of {size}")
        _check(logits.is_floating_point(), f"head() gave {logits.dtype}")
        _check(bool(torch.isfinite(logits).all()), "head() gave a NaN or an infinity")

    def test_the_positions_asked_for_are_those_answered(self) -> None:
        asked: list[Positions] = [Last(), From(9), Explicit((0, 5))]
        whole, *parts = self._logits([self._sequence(12, seed=2, positions=p) for p in (All(), *asked)])
        for positions, part in zip(asked, parts, strict=True):
            indices = list(Sequence((0,) * 12, (), positions).position_indices())
            self._check_close(part, whole[indices], f"{positions} differs from the same rows of All()")

    def test_answers_come_in_the_order_of_the_sequences(self) -> None:
        sequences = [self._sequence(length, seed=length) for length in (5, 17, 9, 17)]
        forwards, backwards = self._logits(sequences), self._logits(sequences[::-1])[::-1]
        for index, (one, other) in enumerate(zip(forwards, backwards, strict=True)):
            _check(one.shape[0] == len(sequences[index].token_ids), f"sequence {index} has {one.shape[0]} rows")
            self._check_close(one, other, f"sequence {index} is answered otherwise in another order")

    def test_neighbours_and_padding_hardly_change_an_answer(self) -> None:
        asked = self._sequence(9, seed=3)
        batch = [self._sequence(_LONGEST, seed=4), asked, self._sequence(1, seed=5)]
        self._check_close(self._logits(batch)[1], self._logits([asked])[0], "an answer depends on its neighbours")

    def test_a_segment_is_answered_as_if_it_stood_alone(self) -> None:
        parts = [self._sequence(length, seed=length).token_ids for length in (7, 1, 13)]
        packed = Sequence(sum(parts, ()), (7, 1, 13), All())
        logits = self._logits([packed, self._sequence(30, seed=6, segment_lengths=(10, 20))])[0]
        alone = self._logits([Sequence(ids, (), All()) for ids in parts])
        self._check_close(logits, torch.cat(alone), "a segment sees beyond its borders")

    def test_its_head_gives_the_same_in_chunks(self) -> None:
        rows = self.backend.forward([self._sequence(20, seed=7)]).rows[0]
        chunks = [self.backend.head(chunk) for chunk in torch.split(rows, 3)]
        self._check_close(torch.cat(chunks), self.backend.head(rows), "head() gives other logits in chunks of 3")

    def test_rows_stay_as_they_were_when_another_batch_runs(self) -> None:
        rows = self.backend.forward([self._sequence(12, seed=8)]).rows[0]
        before = rows.clone()
        self.backend.forward([self._sequence(12, seed=9)])
        _check(torch.equal(rows, before), "forward() overwrites the rows that it gave before")

    def test_its_head_leaves_the_rows_alone(self) -> None:
        rows = self.backend.forward([self._sequence(12, seed=8)]).rows[0]
        before = rows.clone()
        self.backend.head(rows)
        _check(torch.equal(rows, before), "head() changes the rows that it is given")

    def test_padding_is_counted(self) -> None:
        padding = self.backend.forward([self._sequence(10, seed=10), self._sequence(4, seed=11)]).padding_tokens
        _check(isinstance(padding, int) and padding >= 0, f"padding_tokens is {padding!r}")

    def test_a_batch_costs_no_less_for_a_sequence_more(self) -> None:
        lengths = [3, 17, 1, _LONGEST, 17]
        costs = [self.backend.padded_tokens(lengths[:end]) for end in range(1, len(lengths) + 1)]
        _check(costs == sorted(costs), f"padded_tokens() of {lengths}, one after another, falls: {costs}")
        _check(costs[0] >= lengths[0], f"padded_tokens({lengths[:1]}) is {costs[0]}, less than its tokens")

    def test_hidden_states_are_offered_with_the_head_that_explains_them(self) -> None:
        size, head = self.backend.describe().hidden_size, self.backend.output_head()
        _check((size > 0) == (head is not None), f"hidden_size is {size}, but output_head() is {type(head).__name__}")
        if head is None:
            return
        rows = self.backend.forward([self._sequence(12, seed=12)]).rows[0]
        _check(rows.shape[1] == size == head.hidden_size, f"rows of {rows.shape[1]}, a head of {head.hidden_size}")
        self._check_close(head.logits(rows), self.backend.head(rows), "output_head() gives other logits than head()")

    def test_it_may_be_asked_from_another_thread(self) -> None:
        sequence = self._sequence(12, seed=13)
        here = self._logits([sequence])[0]
        with ThreadPoolExecutor(1) as pool:
            there = pool.submit(self._logits, [sequence]).result(timeout=120)[0]
        self._check_close(here, there, "another thread is answered otherwise")

    def test_the_longest_sequence_is_answered(self) -> None:
        length = min(self.backend.describe().max_sequence_tokens, 1024)
        batch = [self._sequence(length, seed=14, positions=Last()), self._sequence(2, seed=15, positions=Last())]
        for logits in self._logits(batch):
            _check(
                bool(torch.isfinite(logits).all()), f"a batch with a sequence of {length} tokens has no finite answer"
            )

    def test_in_deterministic_mode_not_one_bit_depends_on_the_batch(self) -> None:
        if self.backend.describe().mode != "deterministic":
            return
        asked = [self._sequence(length, seed=length) for length in (1, 5, 16, 23, _LONGEST)]
        alone = [self._logits([sequence])[0] for sequence in asked]
        for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 2, 0), (3, 1)):
            together = self._logits([asked[index] for index in order])
            for index, bits in zip(order, together, strict=True):
                _check(torch.equal(bits, alone[index]), f"the bits of {len(bits)} rows depend on their batch {order}")

    def _sequence(
        self, length: int, *, seed: int, positions: Positions | None = None, segment_lengths: tuple[int, ...] = ()
    ) -> Sequence:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.backend.describe().vocabulary_size, (length,), generator=generator)
        return Sequence(tuple(ids.tolist()), segment_lengths, All() if positions is None else positions)

    def _logits(self, sequences: SequenceOf[Sequence]) -> list[Tensor]:
        return [self.backend.head(rows) for rows in self.backend.forward(sequences).rows]

    def _check_close(self, ours: Tensor, theirs: Tensor, fault: str) -> None:
        _check(ours.shape == theirs.shape, f"{fault}: {list(ours.shape)} and {list(theirs.shape)}")
        difference = float((ours.float().cpu() - theirs.float().cpu()).abs().max())
        _check(difference <= self.tolerance, f"{fault}, by {difference:g} where {self.tolerance:g} is allowed")


def _check(holds: Any, fault: str) -> None:
    if not holds:
        raise AssertionError(fault)
