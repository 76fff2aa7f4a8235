"""For any bytes in any chunks, a decoder yields the same frames, and raises only FramingError.

Below it, decoded frames encode to the input, and the virtio-net check never raises and never accepts a header that lets
the kernel write outside the transport header.

    python fuzz/fuzz_framing.py -max_total_time=60
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.framing", "wgvsock.virtio_net"]):
    from wgvsock.errors import FramingError
    from wgvsock.framing import FrameDecoder, Framing, codec_for
    from wgvsock.virtio_net import HEADER_LENGTH, NEEDS_CSUM, check_header


def decode(framing: Framing, stream: bytes, chunk: int) -> tuple[list[bytes], bool]:
    """Return the frames of a stream that arrives in chunks of `chunk` bytes, and whether it ended in a FramingError."""
    decoder = FrameDecoder(framing)
    frames: list[bytes] = []
    for start in range(0, len(stream), chunk):
        piece = stream[start : start + chunk]
        decoder.receive_buffer()[: len(piece)] = piece
        try:
            frames += [bytes(frame) for frame in decoder.received(len(piece))]
        except FramingError:
            return frames, True
    return frames, False


def encode(framing: Framing, frames: list[bytes]) -> bytes:
    """Return the stream that carries these frames."""
    codec = codec_for(framing)
    stream = b""
    for frame in frames:
        room = memoryview(bytearray(codec.header_length) + frame)
        codec.write_header(room, 0, len(frame))
        stream += room
    return stream


def check_stream(framing: Framing, stream: bytes, chunk: int) -> None:
    """Check that chunking changes only the number of frames before an error, and that encoding inverts decoding."""
    whole, whole_failed = decode(framing, stream, max(1, len(stream)))
    cut, cut_failed = decode(framing, stream, chunk)
    assert whole_failed == cut_failed
    assert cut[: len(whole)] == whole
    assert whole_failed or cut == whole
    assert stream.startswith(encode(framing, cut))


def check_packet(packet: bytes) -> None:
    """Check that an accepted header places an incomplete checksum after the IP header and inside the packet."""
    if check_header(memoryview(packet)) is None and len(packet) >= HEADER_LENGTH and packet[0] & NEEDS_CSUM:
        ip = packet[HEADER_LENGTH:]
        start, offset = (int.from_bytes(packet[at : at + 2], "little") for at in (6, 8))
        header = (ip[0] & 15) * 4 if ip[0] >> 4 == 4 else 40
        assert start >= header >= 20
        assert offset in {6, 16}
        assert start + offset + 2 <= len(ip)


def test_one_input(data: bytes) -> None:
    """Use one input in every role."""
    if not data:
        return
    chunk, rest = data[0] + 1, data[1:]
    for framing in Framing:
        check_stream(framing, rest, chunk)
    check_packet(rest)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
