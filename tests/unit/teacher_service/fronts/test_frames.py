"""Frames come out as they went in, and nothing else comes out at all."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_service.fronts.frames import MAX_ABOUT_BYTES, MAX_CALL, Frame, FrameError, Kind, read_frame, write_head

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FRAMES = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, MAX_CALL),
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.binary(max_size=200),
)
SOME = Frame(Kind.ASK, 7, {"caller": "trainer"}, b"body")


class Bytes:
    """What was received, and how much of it was asked for at most at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.most = 0

    async def read(self, num_bytes: int) -> bytes:
        self.most = max(self.most, num_bytes)
        found, self._data = self._data[:num_bytes], self._data[num_bytes:]
        return found


def written(frame: Frame) -> bytes:
    return write_head(frame) + bytes(frame.body)


def run(coroutine: Any) -> Any:
    """Run what never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


@given(st.lists(FRAMES, max_size=4))
def test_frames_come_out_as_they_went_in(frames: list[Frame]) -> None:
    received = Bytes(b"".join(map(written, frames)))
    assert [run(read_frame(received.read)) for _ in frames] == frames
    assert run(read_frame(received.read)) is None


@given(FRAMES, st.data())
def test_a_frame_that_is_cut_off_is_none(frame: Frame, data: st.DataObject) -> None:
    whole = written(frame)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(FrameError, match="cut off"):
        run(read_frame(Bytes(whole[:cut]).read))


@given(st.binary(min_size=1, max_size=100))
def test_foreign_bytes_are_no_frame(data: bytes) -> None:
    received = Bytes(data)
    if data.startswith(b"SF"):
        return
    with pytest.raises(FrameError):
        run(read_frame(received.read))
    assert received.most < 64


@given(FRAMES, st.data())
def test_a_flipped_bit_gives_a_frame_or_an_error_and_never_something_else(frame: Frame, data: st.DataObject) -> None:
    altered = bytearray(written(frame))
    bit = data.draw(st.integers(0, 8 * len(altered) - 1))
    altered[bit // 8] ^= 1 << bit % 8
    try:
        found = run(read_frame(Bytes(bytes(altered)).read))
    except FrameError:
        return
    assert isinstance(found, Frame)
    assert isinstance(found.kind, Kind)
    assert isinstance(found.about, dict)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (struct.pack("<2sBIIQ", b"SF", 99, 0, 0, 0), "kind 99"),
        (struct.pack("<2sBIIQ", b"SF", Kind.ASK, MAX_ABOUT_BYTES + 1, 0, 0), "over the limits"),
        (struct.pack("<2sBIIQ", b"SF", Kind.ASK, 0, 2**31, 0), "over the limits"),
        (struct.pack("<2sBIIQ", b"SF", Kind.ASK, 2, 0, 0) + b"[]", "object"),
        (struct.pack("<2sBIIQ", b"SF", Kind.ASK, 2, 0, 0) + b"{]", "no JSON"),
        (struct.pack("<2sBIIQ", b"SF", Kind.ASK, 2, 0, 0) + b"\xff\xff", "no JSON"),
        (struct.pack("<2sBIIQ", b"SF", Kind.ASK, 200_000, 0, 0) + b"[" * 200_000, "no JSON"),
    ],
)
def test_what_no_frame_says_is_refused_before_it_is_read(head: bytes, why: str) -> None:
    received = Bytes(head)
    with pytest.raises(FrameError, match=why):
        run(read_frame(received.read))
    assert received.most <= 200_000


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.ASK, -1),
        Frame(Kind.ASK, MAX_CALL + 1),
        Frame(Kind.ASK, 0, {"a": "b" * MAX_ABOUT_BYTES}),
    ],
)
def test_what_no_frame_holds_is_not_written(frame: Frame) -> None:
    with pytest.raises(FrameError, match="over the limits"):
        write_head(frame)


def test_the_bytes_of_a_frame() -> None:
    assert written(SOME) == b"SF\x22\x14\0\0\0\x04\0\0\0\x07\0\0\0\0\0\0\0" + b'{"caller":"trainer"}' + b"body"
