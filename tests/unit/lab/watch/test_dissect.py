from __future__ import annotations

import struct
import zlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.wireguard import Wireguard, WireguardInitiation, WireguardTransport
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from lab.guest.packets import LINKTYPE_ETHERNET, LINKTYPE_RAW, CapturedPacket
from lab.watch.dissect import CompatFrame, NativeFrame, checksums_right, dissect, ip_layers, provisioning_name
from lab.watch.tap import Chunk, Kind
from wgvsock.framing import Framing

TRANSPORT = struct.pack("<IIQ", 4, 7, 9) + bytes(32)
KEEPALIVE = struct.pack("<IIQ", 4, 7, 10) + bytes(16)
INITIATION = struct.pack("<II", 1, 5) + bytes(140)


def framed(message: bytes, framing: Framing) -> bytes:
    if framing is Framing.NATIVE:
        return struct.pack(">I", len(message)) + message
    return struct.pack("<HI", len(message), zlib.crc32(message)) + message


@pytest.mark.parametrize(("framing", "layer"), [(Framing.NATIVE, NativeFrame), (Framing.COMPAT, CompatFrame)])
def test_the_layers_build_and_read_the_framing(framing: Framing, layer: type) -> None:
    message = Wireguard() / WireguardTransport(receiver_index=7, counter=9, encrypted_encapsulated_packet=bytes(32))
    assert bytes(layer() / message) == framed(bytes(message), framing)
    read = layer(framed(INITIATION, framing) + b"next")
    assert read[WireguardInitiation].sender_index == 5


@pytest.mark.parametrize("framing", list(Framing))
@given(cuts=st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=20))
def test_frames_do_not_depend_on_how_the_stream_was_cut(framing: Framing, cuts: list[int]) -> None:
    stream = b"".join(framed(message, framing) for message in (INITIATION, TRANSPORT, KEEPALIVE))
    chunks, offset, number = [], 0, 0
    while offset < len(stream):
        step = cuts[number % len(cuts)]
        chunks.append(Chunk(float(number), 1, 51820, Kind.TO_ENCLAVE, stream[offset : offset + step]))
        offset, number = offset + step, number + 1
    frames = dissect(chunks, framing)
    assert [frame.name for frame in frames] == ["handshake initiation", "transport data", "keepalive"]
    assert [frame.payload for frame in frames] == [INITIATION, TRANSPORT, KEEPALIVE]
    assert frames[-1].time == chunks[-1].time


def test_directions_and_connections_do_not_mix() -> None:
    first, second = framed(TRANSPORT, Framing.NATIVE), framed(KEEPALIVE, Framing.NATIVE)
    chunks = [
        Chunk(0.0, 1, 51820, Kind.OPENED, b""),
        Chunk(1.0, 1, 51820, Kind.TO_ENCLAVE, first[:9]),
        Chunk(2.0, 1, 51820, Kind.TO_RELAY, second[:5]),
        Chunk(3.0, 2, 51820, Kind.TO_ENCLAVE, second),
        Chunk(4.0, 1, 51820, Kind.TO_RELAY, second[5:]),
        Chunk(5.0, 1, 51820, Kind.TO_ENCLAVE, first[9:]),
    ]
    assert [(frame.connection, frame.kind, frame.name) for frame in dissect(chunks)] == [
        (2, Kind.TO_ENCLAVE, "keepalive"),
        (1, Kind.TO_RELAY, "keepalive"),
        (1, Kind.TO_ENCLAVE, "transport data"),
    ]


def test_provisioning_messages_are_named_and_decoded() -> None:
    hello = cbor2.dumps({1: 1, 2: 0, 3: bytes(32)})
    chunks = [
        Chunk(0.0, 1, 51821, Kind.TO_RELAY, struct.pack(">I", len(hello)) + hello),
        Chunk(1.0, 1, 51821, Kind.TO_ENCLAVE, struct.pack(">I", 3) + b"\xff\xff\xff"),
    ]
    greeting, garbage = dissect(chunks)
    assert (greeting.name, greeting.fields[3], greeting.packet) == ("HELLO", bytes(32), None)
    assert (garbage.name, garbage.fields) == ("REQUEST", {})


def test_what_is_sealed_is_named_by_its_place() -> None:
    error = cbor2.dumps({1: 1, 2: 255, 3: 10})
    assert provisioning_name(Kind.TO_RELAY, 1, error) == "ERROR"
    assert provisioning_name(Kind.TO_RELAY, 1, error + b"\0") == "RESPONSE"  # no map is longer than its encoding
    assert provisioning_name(Kind.TO_ENCLAVE, 0, error) == "REQUEST"
    assert [provisioning_name(Kind.TO_ENCLAVE, number, b"\xff") for number in range(3)] == [
        "REQUEST",
        "RESULT",
        "unknown",
    ]
    assert provisioning_name(Kind.TO_RELAY, 0, cbor2.dumps({1: 1, 2: 77})) == "unknown"


def test_ip_layers_by_version_and_by_ethertype() -> None:
    four, six = IP(dst="10.0.0.1") / ICMP(), IPv6(dst="fd73::2") / ICMPv6EchoRequest()
    assert isinstance(ip_layers(bytes(four)), IP)
    assert isinstance(ip_layers(bytes(six)), IPv6)
    assert ip_layers(b"") is None
    frame = CapturedPacket(0, LINKTYPE_ETHERNET, outgoing=None, checksum_pending=False, data=bytes(Ether() / four))
    assert ip_layers(frame).dst == "10.0.0.1"
    arp = CapturedPacket(0, LINKTYPE_ETHERNET, outgoing=None, checksum_pending=False, data=bytes(Ether() / ARP()))
    assert ip_layers(arp) is None
    raw = CapturedPacket(0, LINKTYPE_RAW, outgoing=None, checksum_pending=False, data=bytes(six))
    assert ip_layers(raw).dst == "fd73::2"


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2) / Raw(b"data"),
        IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / Raw(b"odd"),
        IP(src="10.0.0.1", dst="10.0.0.2") / ICMP() / Raw(b"ping"),
        IPv6(src="fd73::1", dst="fd73::2") / ICMPv6EchoRequest(data=b"ping"),
        IPv6(src="fd73::1", dst="fd73::2") / UDP(sport=1, dport=2) / Raw(b"data"),
    ],
)
def test_a_right_checksum_is_told_from_a_wrong_one(packet: IP) -> None:
    right = bytes(packet)
    assert checksums_right(right)
    assert not checksums_right(right[:-1] + bytes([right[-1] ^ 0x40]))
