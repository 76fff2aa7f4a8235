from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.provisioning.errors import BadFrameError
from wgvsock.provisioning.frames import FrameReader, encode_frame


def _read_all(chunks: list[bytes], limit: int) -> list[bytes]:
    reader, messages = FrameReader(), []
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            message, rest = reader.take(rest, limit)
            if message is not None:
                messages.append(message)
    assert not reader.started
    return messages


def test_a_frame_is_a_big_endian_length_and_the_message() -> None:
    assert encode_frame(b"abc") == b"\0\0\0\x03abc"


@given(
    messages=st.lists(st.binary(min_size=1, max_size=40), max_size=4),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_reading_does_not_depend_on_how_the_bytes_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, messages))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    assert _read_all(chunks, 40) == messages


@pytest.mark.parametrize("length", [0, 41, 0xFFFFFFFF])
def test_a_length_out_of_range_is_refused_before_its_bytes(length: int) -> None:
    with pytest.raises(BadFrameError):
        FrameReader().take(memoryview(length.to_bytes(4, "big")), 40)


def test_the_longest_message_is_accepted() -> None:
    assert _read_all([encode_frame(bytes(40))], 40) == [bytes(40)]


def test_only_the_current_frame_is_taken_and_stored() -> None:
    reader = FrameReader()
    message, rest = reader.take(memoryview(encode_frame(b"one") + b"the next"), 40)
    assert message == b"one"
    assert bytes(rest) == b"the next"
    assert not reader.started


def test_a_begun_frame_is_known_to_be_begun() -> None:
    reader = FrameReader()
    message, rest = reader.take(memoryview(b"\0"), 40)
    assert message is None
    assert not rest
    assert reader.started
