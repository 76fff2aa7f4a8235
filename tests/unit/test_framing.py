import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.errors import FramingError
from wgvsock.framing import (
    MAX_COMPAT_DATAGRAM,
    MAX_NATIVE_DATAGRAM,
    RECEIVE_BUFFER_SIZE,
    FrameDecoder,
    Framing,
    codec_for,
)

FRAMINGS = pytest.mark.parametrize("framing", list(Framing))


def encode(framing: Framing, datagrams: list[bytes]) -> bytes:
    codec = codec_for(framing)
    stream = b""
    for datagram in datagrams:
        frame = memoryview(bytearray(codec.header_length) + datagram)
        codec.write_header(frame, 0, len(datagram))
        stream += frame
    return stream


def decode(decoder: FrameDecoder, stream: bytes, chunk: int) -> list[bytes]:
    """Feed the stream in pieces of at most `chunk` bytes, as a socket with a slow sender would."""
    datagrams = []
    position = 0
    while position < len(stream):
        room = decoder.receive_buffer()
        piece = stream[position : position + min(chunk, len(room))]
        room[: len(piece)] = piece
        datagrams += [bytes(view) for view in decoder.received(len(piece))]
        position += len(piece)
    return datagrams


def test_native_header_is_big_endian() -> None:
    assert encode(Framing.NATIVE, [b"\x04" * 0x94]) == b"\0\0\0\x94" + b"\x04" * 0x94


def test_compat_header_is_little_endian_length_and_crc() -> None:
    initiation = b"\1\0\0\0" + bytes(144)
    assert encode(Framing.COMPAT, [initiation]) == b"\x94\0" + zlib.crc32(initiation).to_bytes(4, "little") + initiation


@FRAMINGS
def test_header_goes_to_the_given_offset_and_touches_nothing_else(framing: Framing) -> None:
    codec = codec_for(framing)
    buffer = memoryview(bytearray(b"\xaa" * 32))
    codec.write_header(buffer, 5, 3)
    assert bytes(buffer[:5]) == b"\xaa" * 5
    assert bytes(buffer[5 + codec.header_length :]) == b"\xaa" * (27 - codec.header_length)


@FRAMINGS
@given(datagrams=st.lists(st.binary(min_size=1, max_size=300), max_size=8), chunk=st.integers(1, 700))
def test_decoding_does_not_depend_on_the_chunks(framing: Framing, datagrams: list[bytes], chunk: int) -> None:
    stream = encode(framing, datagrams)
    assert decode(FrameDecoder(framing), stream, chunk) == datagrams


@FRAMINGS
@pytest.mark.parametrize("chunk", [1 << 20, 100_000, 65_537])
def test_largest_frames_pass_through_the_bounded_buffer(framing: Framing, chunk: int) -> None:
    limit = codec_for(framing).max_datagram
    datagrams = [bytes([i]) * limit for i in range(1, 10)]
    decoder = FrameDecoder(framing)
    assert decode(decoder, encode(framing, datagrams), chunk) == datagrams
    assert len(decoder.receive_buffer()) == RECEIVE_BUFFER_SIZE


@FRAMINGS
def test_smallest_buffer_still_takes_the_largest_frame(framing: Framing) -> None:
    decoder = FrameDecoder(framing, buffer_size=1)
    largest = b"x" * codec_for(framing).max_datagram
    assert decode(decoder, encode(framing, [b"a", largest, b"b", largest]), 1 << 20) == [b"a", largest, b"b", largest]


def test_datagrams_are_views_of_the_receive_buffer() -> None:
    decoder = FrameDecoder(Framing.NATIVE)
    room = decoder.receive_buffer()
    room[:8] = b"\0\0\0\4abcd"
    (datagram,) = decoder.received(8)
    room[4] = ord("z")
    assert bytes(datagram) == b"zbcd"


@pytest.mark.parametrize(
    ("framing", "header"),
    [
        (Framing.NATIVE, (MAX_NATIVE_DATAGRAM + 1).to_bytes(4, "big")),
        (Framing.NATIVE, b"\xff\xff\xff\xff"),
        (Framing.NATIVE, bytes(4)),
        (Framing.COMPAT, (MAX_COMPAT_DATAGRAM + 1).to_bytes(2, "little") + bytes(4)),
        (Framing.COMPAT, bytes(6)),
    ],
)
def test_length_out_of_bounds_is_refused_from_the_header_alone(framing: Framing, header: bytes) -> None:
    decoder = FrameDecoder(framing)
    with pytest.raises(FramingError, match="announces"):
        decode(decoder, header, 100)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_compat_detects_any_flipped_bit_of_a_payload(payload: bytes, data: st.DataObject) -> None:
    stream = bytearray(encode(Framing.COMPAT, [payload]))
    bit = data.draw(st.integers(6 * 8, len(stream) * 8 - 1))
    stream[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FramingError, match="CRC-32"):
        decode(FrameDecoder(Framing.COMPAT), bytes(stream), 1 << 20)


@FRAMINGS
@given(stream=st.binary(max_size=2000), chunk=st.integers(1, 2000))
def test_garbage_is_a_framing_error_or_frames_and_nothing_else(framing: Framing, stream: bytes, chunk: int) -> None:
    decoder = FrameDecoder(framing)
    try:
        datagrams = decode(decoder, stream, chunk)
    except FramingError:
        return
    assert sum(map(len, datagrams)) <= len(stream)


@pytest.mark.parametrize("chunk", [1, 7, 70_000])
def test_a_decoder_goes_on_in_a_larger_buffer(chunk: int) -> None:
    datagrams = [b"a" * 1000, b"b" * 65_000, b"c"]
    stream = encode(Framing.NATIVE, datagrams)
    decoder = FrameDecoder(Framing.NATIVE, buffer_size=0)
    middle = 40_000
    found = decode(decoder, stream[:middle], chunk)
    decoder.enlarge()
    found += decode(decoder, stream[middle:], chunk)
    assert found == datagrams
    assert len(decoder.receive_buffer()) == RECEIVE_BUFFER_SIZE
