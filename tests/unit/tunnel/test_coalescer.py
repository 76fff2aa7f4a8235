import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tunnel.queued import Reader
from wgvsock.testing import MemoryTun
from wgvsock.tunnel.coalescer import MAX_PACKET, Coalescer
from wgvsock.tunnel.segmentation import segments
from wgvsock.virtio_net import GSO_UDP_L4, MAXIMUM_UDP_SEGMENTS, check_header


def ones_complement(data: bytes) -> int:
    """RFC 1071, by the book."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp(
    payload: bytes, *, version: int = 4, port: int = 53, identification: int = 0, flags: int = 1, **odd: int
) -> bytes:
    """A datagram as the kernel hands it over. `odd` is what prevents its merging."""
    addresses = ipaddress.ip_address("10.0.0.1").packed + ipaddress.ip_address("10.0.0.2").packed
    if version == 6:
        addresses = ipaddress.ip_address("fd00::1").packed + ipaddress.ip_address("fd00::2").packed
    length = 8 + len(payload)
    pseudo = ones_complement(addresses + struct.pack(">HH", 17, length))
    transport = struct.pack(">HHHH", 4000, port, odd.get("udp_length", length), odd.get("checksum", pseudo))
    if version == 4:
        fragment, ttl, tos = odd.get("fragment", 0x4000), odd.get("ttl", 64), odd.get("tos", 0)
        ip = struct.pack(">BBHHHBBH", 0x45, tos, 20 + length, identification, fragment, ttl, odd.get("protocol", 17), 0)
        ip = ip[:10] + (ones_complement(ip + addresses) ^ 0xFFFF).to_bytes(2, "big") + addresses
    else:
        ip = struct.pack(">IHBB", odd.get("first_word", 0x60012345), length, odd.get("protocol", 17), 64) + addresses
    transport_offset = 20 if version == 4 else 40
    virtio = struct.pack(
        "<BBHHHH", flags, odd.get("gso_type", 0), 0, 0, *((transport_offset, 6) if flags == 1 else (0, 0))
    )
    return virtio + ip + transport + payload


def tcp(size: int) -> bytes:
    """A TCP super-packet."""
    header = struct.pack(">BBHHHBBH", 0x45, 0, 40 + size, 0, 0x4000, 64, 6, 0) + bytes(8)
    return struct.pack("<BBHHHH", 1, 1, 40, 1460, 20, 16) + header + bytes(12) + b"\x50" + bytes(7 + size)


def taken_apart(packets: list[bytes]) -> list[bytes]:
    """Return what the far kernel makes of it."""
    apart = []
    for packet in packets:
        apart += [bytes(s) for s in segments(memoryview(packet))] if packet[1] == GSO_UDP_L4 else [packet]
    return apart


@pytest.mark.parametrize("version", [4, 6])
def test_consecutive_datagrams_of_a_flow_become_one(reader: Reader, version: int) -> None:
    packets = [udp(bytes([n]) * 100, version=version, identification=n) for n in range(10)]
    read = reader.read(*packets)
    assert len(read) == 1
    assert reader.counts == [10]
    assert check_header(memoryview(read[0])) is None
    assert taken_apart(read) == packets


@pytest.mark.parametrize("version", [4, 6])
def test_a_shorter_one_is_the_last(reader: Reader, version: int) -> None:
    sizes = [100, 100, 60, 60, 100]
    packets = [udp(bytes(size), version=version, identification=n) for n, size in enumerate(sizes)]
    read = reader.read(*packets)
    assert reader.counts == [3, 1, 1]
    assert [len(packet) for packet in read[1:]] == [len(packets[3]), len(packets[4])]


ODD = {
    "another port": udp(b"x" * 100, port=54),
    "another TTL": udp(b"x" * 100, ttl=63),
    "ECN": udp(b"x" * 100, tos=3),
    "no DF": udp(b"x" * 100, fragment=0),
    "a fragment": udp(b"x" * 100, fragment=0x2000),
    "no checksum": udp(b"x" * 100, checksum=0),
    "a wrong length": udp(b"x" * 100, udp_length=90),
    "not UDP": udp(b"x" * 100, protocol=136),
    "a checksum that nobody looked at": udp(b"x" * 100, flags=0),
    "a checksum that was looked at": udp(b"x" * 100, flags=2),
    "a super-packet": udp(b"x" * 100, gso_type=1),
    "IPv6": udp(b"x" * 100, version=6),
    "empty": udp(b""),
    "TCP": tcp(60_000),
    "short": bytes(10) + b"\x45" + bytes(19),
    "shorter than IPv6's headers": bytes(10) + b"\x60" + bytes(30),
}


@pytest.mark.parametrize("name", ODD)
def test_what_does_not_belong_stays_apart_and_in_order(reader: Reader, name: str) -> None:
    packets = [udp(b"a" * 100), udp(b"b" * 100), ODD[name], udp(b"c" * 100), udp(b"d" * 100)]
    read = reader.read(*packets)
    assert reader.counts == [2, 1, 2]
    assert read[1] == packets[2]
    assert [packet[-100:] for packet in taken_apart(read)] == [packet[-100:] for packet in packets]


@pytest.mark.parametrize(
    "name", sorted(set(ODD) - {"another port", "another TTL", "ECN", "a checksum that was looked at", "IPv6"})
)
def test_what_may_not_grow_is_passed_on_as_it_is(reader: Reader, name: str) -> None:
    assert reader.read(ODD[name], ODD[name]) == [ODD[name]] * 2


def test_a_longer_one_begins_the_next(reader: Reader) -> None:
    packets = [udp(bytes(size), identification=n) for n, size in enumerate([100, 100, 101, 101, 50])]
    read = reader.read(*packets)
    assert reader.counts == [2, 3]
    assert taken_apart(read)[:2] == packets[:2]


@pytest.mark.parametrize("odd", [{"first_word": 0x60054321}, {"protocol": 136}])
def test_other_ipv6_stays_apart(reader: Reader, odd: dict[str, int]) -> None:
    packets = [udp(b"a" * 100, version=6), udp(b"b" * 100, version=6, **odd)]
    assert reader.read(*packets) == packets


def test_a_checksum_that_was_looked_at_may_be_opened_again(reader: Reader) -> None:
    packets = [udp(bytes(100), flags=2, checksum=0x1234), udp(bytes(100), flags=2, checksum=0x4321, identification=1)]
    read = reader.read(*packets)
    assert reader.counts == [2]
    assert taken_apart(read) == [udp(bytes(100)), udp(bytes(100), identification=1)]


def test_segments_and_length_are_bounded(reader: Reader) -> None:
    small = [udp(bytes(10), identification=n) for n in range(MAXIMUM_UDP_SEGMENTS + 5)]
    assert taken_apart(reader.read(*small)) == small
    assert reader.counts == [MAXIMUM_UDP_SEGMENTS, 5]
    large = [udp(bytes(1400), identification=n) for n in range(60)]
    read = reader.read(*large)
    assert max(len(packet) for packet in read) <= 10 + MAX_PACKET
    assert taken_apart(read)[0] == large[0]
    assert len(taken_apart(read)) == 60


def test_the_longest_packet_behind_the_longest_super_packet(reader: Reader) -> None:
    packets = [udp(bytes(15_000), identification=n) for n in range(4)] + [tcp(MAX_PACKET - 40)]
    read = reader.read(*packets)
    assert reader.counts == [4, 1]
    assert taken_apart(read) == packets


def test_switched_off_it_reads_packet_by_packet() -> None:
    reader = Reader(enabled=False)
    packets = [udp(bytes(100))] * 3
    assert reader.read(*packets) == packets
    assert reader.counts == [1, 1, 1]
    reader.tun.close()


FLOWS = st.tuples(st.sampled_from([4, 6]), st.integers(50, 52), st.integers(0, 40), st.sampled_from([1, 2]))


@given(st.lists(FLOWS, max_size=30))
def test_every_payload_comes_through_once_and_in_order(flows: list[tuple[int, int, int, int]]) -> None:
    reader = Reader()
    packets = [
        udp(bytes([n]) * size, version=version, port=port, flags=flags)
        for n, (version, port, size, flags) in enumerate(flows)
    ]
    read = reader.read(*packets)
    assert all(check_header(memoryview(packet)) is None for packet in read)
    assert sum(reader.counts) == len(packets)

    def payload(packet: bytes) -> bytes:
        return packet[38:] if packet[10] >> 4 == 4 else packet[58:]

    assert [payload(packet) for packet in taken_apart(read)] == [payload(packet) for packet in packets]
    reader.tun.close()


def test_it_tells_that_nothing_comes_after_a_datagram() -> None:
    tun = MemoryTun(10)
    coalescer = Coalescer(tun)
    coalescer.enabled = True
    tun.inject(udp(b"alone"))
    assert coalescer.read()
    assert coalescer.drained
    assert not coalescer.read()
    assert not coalescer.drained  # it has looked anew
    tun.close()
