import struct
from ipaddress import ip_address

import pytest

from wgvsock.checksum import internet_checksum
from wgvsock.testing.echo import answer
from wgvsock.tunnel.echo import Echo

TOKEN = bytes(range(16))
OURS4, THEIRS4 = ip_address("10.73.0.1"), ip_address("10.73.0.2")
OURS6, THEIRS6 = ip_address("fd00:73::1"), ip_address("fd00:73::2")


def make(version: int, headroom: int = 0) -> Echo:
    return Echo(*((OURS4, THEIRS4) if version == 4 else (OURS6, THEIRS6)), 0xBEEF, headroom)


def test_a_request_of_ipv4_is_what_every_ping_sends() -> None:
    packet = make(4).request(7, TOKEN)
    assert packet[:2] == b"\x45\x00"
    assert int.from_bytes(packet[2:4], "big") == len(packet) == 44
    assert packet[8:10] == bytes([64, 1])
    assert packet[12:20] == OURS4.packed + THEIRS4.packed
    assert packet[20:22] == b"\x08\x00"
    assert packet[24:] == struct.pack(">HH", 0xBEEF, 7) + TOKEN
    # A receiver sums what it was sent, checksums included (RFC 1071).
    assert internet_checksum(packet[:20]) == internet_checksum(packet[20:]) == 0


def test_a_request_of_ipv6_counts_addresses_into_its_checksum() -> None:
    packet = make(6).request(7, TOKEN)
    assert packet[:8] == b"\x60\0\0\0\x00\x18\x3a\x40"
    assert packet[8:40] == OURS6.packed + THEIRS6.packed
    assert packet[40:42] == b"\x80\x00"
    assert internet_checksum(packet[8:40] + struct.pack(">II", 24, 58) + packet[40:]) == 0


@pytest.mark.parametrize("headroom", [0, 10])
@pytest.mark.parametrize("version", [4, 6])
def test_a_reply_is_known_with_and_without_a_virtio_header(version: int, headroom: int) -> None:
    echo = make(version, headroom)
    request = echo.request(0xFFFF, TOKEN)
    assert request[:headroom] == bytes(headroom)
    assert echo.reply_in(memoryview(answer(request, headroom))) == (0xFFFF, TOKEN)
    assert echo.reply_in(memoryview(request)) is None


def changed(packet: bytes, offset: int, value: int) -> bytes:
    return packet[:offset] + bytes([value]) + packet[offset + 1 :]


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0x46), (6, 0x20), (7, 1), (9, 17), (15, 9), (19, 9), (20, 8), (20, 3), (21, 1), (24, 0), (25, 0)],
    ids=str,
)
def test_what_is_like_a_reply_of_ipv4_and_is_none(offset: int, value: int) -> None:
    echo = make(4)
    reply = answer(echo.request(1, TOKEN))
    assert echo.reply_in(memoryview(reply)) is not None
    assert echo.reply_in(memoryview(changed(reply, offset, value))) is None


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0x40), (6, 17), (23, 9), (39, 9), (40, 128), (40, 1), (41, 1), (44, 0), (45, 0)], ids=str
)
def test_what_is_like_a_reply_of_ipv6_and_is_none(offset: int, value: int) -> None:
    echo = make(6)
    reply = answer(echo.request(1, TOKEN))
    assert echo.reply_in(memoryview(reply)) is not None
    assert echo.reply_in(memoryview(changed(reply, offset, value))) is None


@pytest.mark.parametrize("version", [4, 6])
def test_another_length_is_another_packet(version: int) -> None:
    echo = make(version)
    reply = answer(echo.request(1, TOKEN))
    assert echo.reply_in(memoryview(reply + b"\0")) is None
    assert echo.reply_in(memoryview(reply[:-1])) is None
    assert echo.reply_in(memoryview(b"")) is None
