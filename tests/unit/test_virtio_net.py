import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgvsock.virtio_net import (
    HEADER_LENGTH,
    MAXIMUM_UDP_SEGMENTS,
    MINIMUM_TCP_SEGMENT,
    ZERO_HEADER,
    HeaderFault,
    check_header,
    is_cut_too_fine,
)

TCP, UDP, ICMP = 6, 17, 1


def header(*fields: int) -> bytes:
    """flags, gso_type, hdr_len, gso_size, csum_start, csum_offset. Omitted ones are 0."""
    return struct.pack("<BBHHHH", *fields, *[0] * (6 - len(fields)))


def ipv4(protocol: int, transport: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    length = 20 + len(options) + len(transport)
    first = 0x45 + len(options) // 4
    addresses = bytes([10, 73, 0, 2, 10, 73, 0, 1])
    return struct.pack(">BBHHHBBH", first, 0, length, 1, fragment, 64, protocol, 0) + addresses + options + transport


def ipv6(protocol: int, transport: bytes, *, extensions: bytes = b"", first: int | None = None) -> bytes:
    payload = extensions + transport
    next_header = protocol if first is None else first
    return struct.pack(">IHBB", 0x60000000, len(payload), next_header, 64) + bytes(32) + payload


def tcp(payload: int, *, options: int = 0) -> bytes:
    return bytes(12) + bytes([(20 + options) // 4 << 4]) + bytes(7 + options + payload)


def udp(payload: int) -> bytes:
    return struct.pack(">HHHH", 53, 53, 8 + payload, 0) + bytes(payload)


def check(packet: bytes) -> HeaderFault | None:
    return check_header(memoryview(packet))


GOOD = {
    "plain": ZERO_HEADER + ipv4(ICMP, bytes(64)),
    "validated": header(2) + ipv4(UDP, udp(64)),
    "tcp4 checksum": header(1, 0, 0, 0, 20, 16) + ipv4(TCP, tcp(0)),
    "tcp4 checksum behind options": header(1, 0, 0, 0, 28, 16) + ipv4(TCP, tcp(0), options=bytes(8)),
    "udp4 checksum": header(1, 0, 0, 0, 20, 6) + ipv4(UDP, udp(64)),
    "udp6 checksum": header(1, 0, 0, 0, 40, 6) + ipv6(UDP, udp(64)),
    "udp6 checksum behind an extension": header(1, 0, 0, 0, 48, 6)
    + ipv6(UDP, udp(64), extensions=bytes([UDP, 0]) + bytes(6), first=60),
    "tso4": header(1, 1, 40, 1460, 20, 16) + ipv4(TCP, tcp(64_000)),
    "tso4 of the default MSS": header(1, 1, 40, MINIMUM_TCP_SEGMENT, 20, 16) + ipv4(TCP, tcp(64_000)),
    "tso6 of the default MSS": header(1, 4, 60, MINIMUM_TCP_SEGMENT, 40, 16) + ipv6(TCP, tcp(64_000)),
    "tso4 with CWR": header(1, 0x81, 40, 1460, 20, 16) + ipv4(TCP, tcp(64_000)),
    "tso4 with timestamps": header(1, 1, 52, 1448, 20, 16) + ipv4(TCP, tcp(64_000, options=12)),
    "tso4 with all of it in the linear part": header(1, 1, 3040, 1460, 20, 16) + ipv4(TCP, tcp(3000)),
    "tso6": header(1, 4, 60, 1440, 40, 16) + ipv6(TCP, tcp(64_000)),
    "tso6 with CWR": header(1, 0x84, 60, 1440, 40, 16) + ipv6(TCP, tcp(64_000)),
    "uso4": header(1, 5, 28, 1200, 20, 6) + ipv4(UDP, udp(50_000)),
    "uso6": header(1, 5, 48, 1, 40, 6) + ipv6(UDP, udp(MAXIMUM_UDP_SEGMENTS)),
}
TSO4 = ipv4(TCP, tcp(3000))
TSO6 = ipv6(TCP, tcp(3000))
USO4 = ipv4(UDP, udp(3000))

BAD = {
    "no packet": (header(1), HeaderFault.TRUNCATED),
    "half an IP header": (header(1, 0, 0, 0, 20, 6) + ipv4(UDP, udp(0))[:19], HeaderFault.TRUNCATED),
    "both flags": (header(3, 0, 0, 0, 20, 16) + ipv4(TCP, tcp(0)), HeaderFault.FLAGS),
    "RSC flag": (header(4) + ipv4(TCP, tcp(0)), HeaderFault.FLAGS),
    "unknown flag": (header(0x80) + ipv4(TCP, tcp(0)), HeaderFault.FLAGS),
    "segmentation without a checksum": (header(0, 1, 40, 1460, 20, 16) + TSO4, HeaderFault.GSO_TYPE),
    "size without segmentation or checksum": (header(0, 0, 0, 1460) + TSO4, HeaderFault.GSO_SIZE),
    "hdr_len without segmentation or checksum": (header(0, 0, 40) + TSO4, HeaderFault.HDR_LEN),
    "csum_start without NEEDS_CSUM": (header(0, 0, 0, 0, 20) + TSO4, HeaderFault.CSUM),
    "csum_offset without NEEDS_CSUM": (header(2, 0, 0, 0, 0, 16) + TSO4, HeaderFault.CSUM),
    "size without segmentation": (header(1, 0, 0, 8, 20, 16) + TSO4, HeaderFault.GSO_SIZE),
    "hdr_len without segmentation": (header(1, 0, 40, 0, 20, 16) + TSO4, HeaderFault.HDR_LEN),
    "checksum written over the source address": (header(1, 0, 0, 0, 0, 12) + TSO4, HeaderFault.CSUM),
    "checksum written over the port": (header(1, 0, 0, 0, 20, 2) + TSO4, HeaderFault.CSUM),
    "checksum of UDP in TCP": (header(1, 0, 0, 0, 20, 6) + TSO4, HeaderFault.CSUM),
    "checksum in ICMP": (header(1, 0, 0, 0, 20, 2) + ipv4(ICMP, bytes(64)), HeaderFault.CSUM),
    "checksum behind the packet": (header(1, 0, 0, 0, 20, 16) + ipv4(TCP, bytes(17)), HeaderFault.CSUM),
    "checksum start far away": (header(1, 0, 0, 0, 65_535, 16) + TSO4, HeaderFault.CSUM),
    "checksum in a first fragment": (
        header(1, 0, 0, 0, 20, 6) + ipv4(UDP, udp(64), fragment=0x2000),
        HeaderFault.IP_HEADER,
    ),
    "checksum in a later fragment": (
        header(1, 0, 0, 0, 20, 6) + ipv4(UDP, udp(64), fragment=0x0001),
        HeaderFault.IP_HEADER,
    ),
    "checksum in an IPv6 fragment": (
        header(1, 0, 0, 0, 48, 6) + ipv6(UDP, udp(64), extensions=bytes([UDP, 0]) + bytes(6), first=44),
        HeaderFault.CSUM,
    ),
    "short IHL": (header(1, 0, 0, 0, 16, 16) + b"\x44" + TSO4[1:], HeaderFault.IP_HEADER),
    "IHL behind the packet": (header(1, 0, 0, 0, 60, 16) + b"\x4f" + ipv4(TCP, tcp(0))[1:], HeaderFault.IP_HEADER),
    "IPv4 length too short": (header(1, 0, 0, 0, 20, 16) + TSO4 + b"\0", HeaderFault.IP_HEADER),
    "IPv4 length too long": (header(1, 0, 0, 0, 20, 16) + TSO4[:-1], HeaderFault.IP_HEADER),
    "IPv6 length wrong": (header(1, 0, 0, 0, 40, 16) + TSO6[:-1], HeaderFault.IP_HEADER),
    "half an IPv6 header": (header(1, 0, 0, 0, 40, 16) + TSO6[:39], HeaderFault.IP_HEADER),
    "neither IPv4 nor IPv6": (header(1, 0, 0, 0, 20, 16) + b"\x75" + TSO4[1:], HeaderFault.IP_HEADER),
    "extension headers without end": (
        header(1, 0, 0, 0, 40, 16) + ipv6(0, b"", extensions=bytes(8) * 9, first=0),
        HeaderFault.IP_HEADER,
    ),
    "extension header behind the packet": (
        header(1, 0, 0, 0, 40, 16) + ipv6(0, b"", extensions=bytes([TCP, 255]) + bytes(6), first=0),
        HeaderFault.CSUM,
    ),
    "extension header cut off": (
        header(1, 0, 0, 0, 40, 16) + ipv6(0, b"", extensions=bytes(4), first=0),
        HeaderFault.IP_HEADER,
    ),
    "unknown segmentation": (header(1, 2, 40, 1460, 20, 16) + TSO4, HeaderFault.GSO_TYPE),
    "legacy UDP fragmentation": (header(1, 3, 28, 1472, 20, 6) + USO4, HeaderFault.GSO_TYPE),
    "UDP segmentation with CWR": (header(1, 0x85, 28, 1200, 20, 6) + USO4, HeaderFault.GSO_TYPE),
    "CWR without segmentation": (header(1, 0x80, 40, 1460, 20, 16) + TSO4, HeaderFault.GSO_TYPE),
    "IPv6 segmentation of IPv4": (header(1, 4, 40, 1460, 20, 16) + TSO4, HeaderFault.GSO_TYPE),
    "IPv4 segmentation of IPv6": (header(1, 1, 60, 1460, 40, 16) + TSO6, HeaderFault.GSO_TYPE),
    "UDP segmentation of TCP": (header(1, 5, 40, 1460, 20, 16) + TSO4, HeaderFault.GSO_TYPE),
    "TCP segmentation of UDP": (header(1, 1, 28, 1200, 20, 6) + USO4, HeaderFault.GSO_TYPE),
    "hdr_len behind the packet": (header(1, 1, 3041, 1460, 20, 16) + TSO4, HeaderFault.HDR_LEN),
    "hdr_len within the headers": (header(1, 1, 39, 1460, 20, 16) + TSO4, HeaderFault.HDR_LEN),
    "TCP data offset too small": (
        header(1, 1, 40, 1460, 20, 16) + TSO4[:32] + b"\x40" + TSO4[33:],
        HeaderFault.IP_HEADER,
    ),
    "TCP data offset behind the packet": (
        header(1, 1, 40, 8, 20, 16) + ipv4(TCP, bytes(12) + b"\xf0" + bytes(8)),
        HeaderFault.IP_HEADER,
    ),
    "no segment size": (header(1, 1, 40, 0, 20, 16) + TSO4, HeaderFault.GSO_SIZE),
    "tiny TCP segments": (header(1, 1, 40, 8, 20, 16) + TSO4, HeaderFault.GSO_SIZE),
    "TCP segments that make 135 packets of one": (
        header(1, 1, 40, 480, 20, 16) + ipv4(TCP, tcp(64_800)),
        HeaderFault.GSO_SIZE,
    ),
    "TCP segments below the default MSS": (header(1, 1, 40, 535, 20, 16) + TSO4, HeaderFault.GSO_SIZE),
    "TCP segments below the default MSS on IPv6": (header(1, 4, 60, 535, 40, 16) + TSO6, HeaderFault.GSO_SIZE),
    "TCP segments of Linux' magic size": (header(1, 1, 40, 0xFFFF, 20, 16) + TSO4, HeaderFault.GSO_SIZE),
    "UDP segments of Linux' magic size": (header(1, 5, 28, 0xFFFF, 20, 6) + USO4, HeaderFault.GSO_SIZE),
    "no UDP segment size": (header(1, 5, 28, 0, 20, 6) + USO4, HeaderFault.GSO_SIZE),
    "too many UDP segments": (header(1, 5, 28, 23, 20, 6) + USO4, HeaderFault.GSO_SIZE),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_kernel_writes_is_accepted(name: str) -> None:
    assert check(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_what_no_kernel_writes_is_refused(name: str) -> None:
    packet, fault = BAD[name]
    assert check(packet) is fault


@pytest.mark.parametrize("name", [name for name, packet in GOOD.items() if packet[1]])
def test_what_is_accepted_is_not_cut_too_fine(name: str) -> None:
    assert not is_cut_too_fine(memoryview(GOOD[name]))


@pytest.mark.parametrize(
    "packet",
    [
        header(1, 1, 52, 76, 20, 16) + ipv4(TCP, tcp(4000, options=12)),
        header(1, 0x84, 60, 535, 40, 16) + ipv6(TCP, tcp(4000)),
        header(1, 5, 28, 10, 20, 6) + ipv4(UDP, udp(10 * MAXIMUM_UDP_SEGMENTS + 1)),
        header(1, 5, 48, 1, 40, 6) + ipv6(UDP, udp(MAXIMUM_UDP_SEGMENTS + 1)),
    ],
)
def test_what_a_kernel_cuts_too_fine_is_what_is_refused(packet: bytes) -> None:
    assert is_cut_too_fine(memoryview(packet))
    assert check(packet) is HeaderFault.GSO_SIZE


def test_every_fault_is_tested() -> None:
    assert {fault for _, fault in BAD.values()} == set(HeaderFault)


FIELDS = st.one_of(st.integers(0, 70), st.integers(0, 0xFFFF))
PACKETS = st.one_of(
    st.sampled_from([packet[HEADER_LENGTH:] for packet in GOOD.values() if len(packet) < 5000]),
    st.binary(max_size=200),
)


def is_safe(packet: bytes, fields: tuple[int, int, int, int, int, int]) -> bool:
    """What the kernel would do with an accepted header, written without the checker's own steps."""
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = fields
    if not flags & 1:
        return gso_type == 0 and (gso_size, hdr_len, csum_start, csum_offset) == (0, 0, 0, 0)
    ip_header = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    written_to = csum_start + csum_offset
    return (
        csum_start >= ip_header
        and written_to + 2 <= len(packet)
        and csum_offset in {6, 16}
        and hdr_len <= len(packet)
        and (gso_type == 0 or gso_size > 0)
        and (gso_type == 0 or len(packet) <= gso_size * 8192 + csum_start + 60)
    )


@settings(max_examples=500)
@given(
    packet=PACKETS,
    fields=st.tuples(
        st.integers(0, 255) | st.sampled_from([0, 1, 2]),
        st.integers(0, 255) | st.sampled_from([0, 1, 4, 5]),
        FIELDS,
        FIELDS,
        st.sampled_from([20, 40, 48]) | FIELDS,
        st.sampled_from([6, 16]) | FIELDS,
    ),
)
def test_any_accepted_header_is_safe(packet: bytes, fields: tuple[int, int, int, int, int, int]) -> None:
    if check(header(*fields) + packet) is None and any(fields):
        assert is_safe(packet, fields)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("mutate", [lambda p, n: p[:n], flip], ids=["truncated", "bit flipped"])
@pytest.mark.parametrize("name", [name for name, packet in GOOD.items() if len(packet) < 200])
def test_damage_never_raises(name: str, mutate: Callable[[bytes, int], bytes]) -> None:
    for n in range(len(GOOD[name])):
        assert check(mutate(GOOD[name], n)) in {None, *HeaderFault}
