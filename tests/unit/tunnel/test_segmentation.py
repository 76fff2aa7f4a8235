import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.tunnel.segmentation import segments, write_super_header
from wgvsock.virtio_net import check_header

ADDRESSES = {4: ("192.0.2.1", "198.51.100.7"), 6: ("2001:db8::1", "2001:db8:ffff::7")}


def ones_complement(data: bytes) -> int:
    """RFC 1071, by the book."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def datagram(version: int, payload: bytes, *, identification: int = 7, options: bytes = b"") -> bytes:
    """A virtio-net header with an open checksum and a UDP datagram, as a kernel hands it over."""
    source, destination = (ipaddress.ip_address(text).packed for text in ADDRESSES[version])
    length = 8 + len(payload)
    udp = struct.pack(">HHHH", 4000, 53, length, ones_complement(source + destination + struct.pack(">HH", 17, length)))
    if version == 4:
        headers = 20 + len(options)
        first = 0x40 | headers // 4
        ip = struct.pack(">BBHHHBBH", first, 0, headers + length, identification, 0x4000, 64, 17, 0)
        checksum = ones_complement(ip + source + destination + options) ^ 0xFFFF
        ip = ip[:10] + checksum.to_bytes(2, "big") + source + destination + options
    else:
        headers = 40
        ip = struct.pack(">IHBB", 0x60012345, length, 17, 64) + source + destination
    return struct.pack("<BBHHHH", 1, 0, 0, 0, headers, 6) + ip + udp + payload


def segment(
    version: int,
    payload: bytes,
    *,
    sequence: int = 1000,
    flags: int = 0x10,
    identification: int = 7,
    options: bytes = b"",
) -> bytes:
    """The same with a TCP segment."""
    source, destination = (ipaddress.ip_address(text).packed for text in ADDRESSES[version])
    headers = 20 + len(options)
    length = headers + len(payload)
    pseudo = ones_complement(source + destination + struct.pack(">HH", 6, length))
    tcp = struct.pack(">HHIIBBHHH", 4000, 80, sequence, 9, headers // 4 << 4, flags, 512, pseudo, 0) + options
    if version == 4:
        start = 20
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, identification, 0x4000, 64, 6, 0)
        checksum = ones_complement(ip + source + destination) ^ 0xFFFF
        ip = ip[:10] + checksum.to_bytes(2, "big") + source + destination
    else:
        start = 40
        ip = struct.pack(">IHBB", 0x60012345, length, 6, 64) + source + destination
    return struct.pack("<BBHHHH", 1, 0, 0, 0, start, 16) + ip + tcp + payload


def tcp_super_packet(packet: bytes, size: int) -> bytes:
    """A segment with more payload than allowed, as the kernel hands it over."""
    start = 20 if packet[10] >> 4 == 4 else 40
    gso_type = (1 if start == 20 else 4) | (0x80 if packet[10 + start + 13] & 0x80 else 0)
    headers = start + (packet[10 + start + 12] >> 4) * 4
    return struct.pack("<BBHHHH", 1, gso_type, headers, size, start, 16) + packet[10:]


def super_packet(version: int, payload: bytes, size: int) -> bytes:
    """All of the payload after the headers of the first datagram."""
    buffer = memoryview(bytearray(datagram(version, payload[:size]) + payload[size:]))
    write_super_header(buffer, len(buffer), size)
    return bytes(buffer)


@pytest.mark.parametrize("version", [4, 6])
def test_a_super_packet_is_what_the_kernel_takes(version: int) -> None:
    packet = super_packet(version, bytes(1000), 300)
    headers = 28 if version == 4 else 48
    assert struct.unpack("<BBHHHH", packet[:10]) == (1, 5, headers, 300, headers - 8, 6)
    assert check_header(memoryview(packet)) is None
    # Headers of one datagram with all of the payload: lengths, header checksum, pseudo-header.
    assert packet[10:] == datagram(version, bytes(1000))[10:]


@pytest.mark.parametrize("version", [4, 6])
@given(payload=st.binary(min_size=2, max_size=500), size=st.integers(1, 200))
def test_taking_apart_undoes_putting_together(version: int, payload: bytes, size: int) -> None:
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    expected = [datagram(version, piece, identification=7 + number) for number, piece in enumerate(pieces)]
    packet = super_packet(version, payload, size)
    assert [bytes(segment) for segment in segments(memoryview(packet))] == expected


def test_segments_of_a_packet_with_ip_options() -> None:
    options = b"\x94\4\0\0"  # router alert (RFC 2113)
    whole = bytearray(datagram(4, b"abcdef", options=options))
    whole[:10] = struct.pack("<BBHHHH", 1, 5, 32, 4, 24, 6)
    assert check_header(memoryview(whole)) is None
    expected = [datagram(4, b"abcd", options=options), datagram(4, b"ef", identification=8, options=options)]
    assert [bytes(segment) for segment in segments(memoryview(whole))] == expected


def test_the_identification_wraps_around() -> None:
    whole = bytearray(datagram(4, b"ab", identification=0xFFFF))
    whole[:10] = struct.pack("<BBHHHH", 1, 5, 28, 1, 20, 6)
    identifications = [bytes(segment[14:16]) for segment in segments(memoryview(whole))]
    assert identifications == [b"\xff\xff", b"\0\0"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [b"", bytes([1, 1, 8, 10]) + bytes(8)], ids=["bare", "timestamps"])
@given(payload=st.binary(min_size=1, max_size=500), size=st.integers(1, 600), sequence=st.integers(0, 0xFFFFFFFF))
def test_taking_tcp_apart(version: int, options: bytes, payload: bytes, size: int, sequence: int) -> None:
    whole = segment(version, payload, sequence=sequence, options=options)
    expected = [
        segment(
            version,
            payload[start : start + size],
            sequence=(sequence + start) % 2**32,
            identification=7 + number,
            options=options,
        )
        for number, start in enumerate(range(0, len(payload), size))
    ]
    assert [bytes(piece) for piece in segments(memoryview(tcp_super_packet(whole, size)))] == expected


def test_flags_that_are_not_every_segment_s() -> None:
    fin, psh, ack, cwr = 0x01, 0x08, 0x10, 0x80
    whole = tcp_super_packet(segment(4, b"abcdef", flags=fin | psh | ack | cwr), 2)
    flags = [piece[43] for piece in segments(memoryview(whole))]
    assert flags == [ack | cwr, ack, ack | psh | fin]


@pytest.mark.parametrize("size", [0, 1000])
def test_a_super_packet_with_one_segment_is_that_segment(size: int) -> None:
    for payload in (b"", b"abc"):
        plain = segment(6, payload)
        assert [bytes(piece) for piece in segments(memoryview(tcp_super_packet(plain, size)))] == [plain]
