"""Shared memory: what was laid down is read there until it is given back, and no two parts share a byte."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_service.fronts import arena as module
from teacher_service.fronts.arena import Arena, ArenaView

SIZE = 4096


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(SIZE)
    yield made
    made.close()


def lay(arena: Arena, parts: Sequence[bytes | memoryview]) -> int | None:
    start = arena.take(sum(map(len, parts)))
    if start is not None:
        arena.lay(start, parts)
    return start


def view_of(arena: Arena) -> ArenaView:
    return ArenaView(os.dup(arena.descriptor))


def test_what_is_laid_down_is_read_on_the_other_side(arena: Arena) -> None:
    view = view_of(arena)
    starts = [lay(arena, [b"one", memoryview(b"three")]), lay(arena, [b"x" * 100])]
    assert None not in starts
    first, second = view.views(starts[0] or 0, [3, 5]), view.views(starts[1] or 0, [100])
    assert [bytes(one) for one in (*first, *second)] == [b"one", b"three", b"x" * 100]


def test_the_front_cannot_write(arena: Arena) -> None:
    start = lay(arena, [b"mine"])
    (found,) = view_of(arena).views(start or 0, [4])
    with pytest.raises(TypeError, match="read-only"):
        found[0] = 0


def test_what_does_not_fit_is_not_laid_down(arena: Arena) -> None:
    assert lay(arena, [b"x" * (SIZE + 1)]) is None
    whole = lay(arena, [b"x" * SIZE])
    assert lay(arena, [b"y"]) is None
    arena.give_back(whole or 0)
    assert lay(arena, [b"y" * SIZE]) == 0


def test_nothing_takes_no_place(arena: Arena) -> None:
    assert lay(arena, []) is None
    assert lay(arena, [b""]) is None
    assert arena.taken_bytes == 0


def test_to_give_back_what_was_not_laid_is_an_error(arena: Arena) -> None:
    start = lay(arena, [b"x"])
    arena.give_back(start or 0)
    with pytest.raises(KeyError):
        arena.give_back(start or 0)


@pytest.mark.parametrize(("start", "sizes"), [(-1, [1]), (0, [SIZE + 1]), (SIZE, [1]), (0, [SIZE, 1]), (5, [-1, 2])])
def test_nobody_looks_beyond_the_end(arena: Arena, start: int, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="beyond"):
        view_of(arena).views(start, sizes)


def test_pages_go_back_once_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 2**16)
    arena = Arena(2**22)
    try:
        start = lay(arena, [b"x" * 2**22])
        assert os.fstat(arena.descriptor).st_blocks * 512 >= 2**22
        arena.give_back(start or 0)
        assert os.fstat(arena.descriptor).st_blocks * 512 <= 2**16
        again = lay(arena, [b"y" * 2**22])
        assert bytes(view_of(arena).views(again or 0, [2**22])[0]) == b"y" * 2**22
    finally:
        arena.close()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 700), st.integers(0, 100)), max_size=80))
def test_whatever_comes_and_goes_stays_what_it_was(steps: list[tuple[bool, int, int]]) -> None:
    arena = Arena(SIZE)
    try:
        view, laid = view_of(arena), dict[int, bytes]()
        for number, (gives_back, size, which) in enumerate(steps):
            if gives_back and laid:
                start = sorted(laid)[which % len(laid)]
                del laid[start]
                arena.give_back(start)
            else:
                data = bytes([number % 256]) * size
                found = lay(arena, [data])
                if found is not None:
                    assert found not in laid
                    laid[found] = data
            for start, data in laid.items():
                assert bytes(view.views(start, [len(data)])[0]) == data
        for start in laid:
            arena.give_back(start)
        assert arena.taken_bytes == 0
        assert lay(arena, [b"z" * SIZE]) == 0, "the free parts have not become one again"
    finally:
        arena.close()
