"""What the sender of a refused packet receives, with Scapy as the judge of every field and checksum."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from tests.unit.egress.packets import ENCLAVE, PEER, out
from wgvsock.egress.reading import read
from wgvsock.egress.refusal import refusal

NOBODY = str(ip_address(0))
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def answer(ip: memoryview) -> Any:
    """Return it as Scapy reads it, or None. Its checksums and lengths are those that Scapy computes."""
    reading = read(ip)
    assert reading is not None
    told = refusal(reading, ip)
    if told is None:
        return None
    parsed = (IP if told[0] >> 4 == 4 else IPv6)(told)
    rebuilt = parsed.copy()
    for layer, fields in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (TCP, ("chksum",)), (ICMP, ("chksum",)),
                          (ICMPv6DestUnreach, ("cksum",))):  # fmt: skip
        if layer in rebuilt:
            for name in fields:
                delattr(rebuilt[layer], name)
    assert bytes(rebuilt) == told
    return parsed


@VERSIONS
@pytest.mark.parametrize(("payload", "sequence"), [(b"", 1000), (b"early data", 0xFFFFFFFF)])
def test_a_connection_is_reset(version: int, payload: bytes, sequence: int) -> None:
    options = [("MSS", 1460), ("NOP", None), ("WScale", 7)]
    syn = TCP(sport=40000, dport=443, flags="S", seq=sequence, options=options) / Raw(payload)
    reset = answer(out(syn, version=version))
    assert (reset.src, reset.dst) == (PEER[version], ENCLAVE[version])
    tcp = reset[TCP]
    assert (tcp.sport, tcp.dport, tcp.flags, tcp.seq) == (443, 40000, "RA", 0)
    assert tcp.ack == (sequence + 1 + len(payload)) & 0xFFFFFFFF


@pytest.mark.parametrize("flags", ["A", "SA", "FA", "R", "PA"])
@VERSIONS
def test_a_segment_within_a_connection_is_dropped_in_silence(version: int, flags: str) -> None:
    assert answer(out(TCP(sport=40000, dport=443, flags=flags), version=version)) is None


@VERSIONS
@pytest.mark.parametrize("size", [0, 1, 500, 501, 9000])
def test_a_datagram_is_prohibited(version: int, size: int) -> None:
    ip = out(UDP(sport=40000, dport=53) / Raw(bytes(size)), version=version)
    error = answer(ip)
    assert (error.src, error.dst) == (PEER[version], ENCLAVE[version])
    message = error[ICMP] if version == 4 else error[ICMPv6DestUnreach]
    assert (message.type, message.code) == ((3, 13) if version == 4 else (1, 1))
    quote = bytes(error)[28 if version == 4 else 48 :]  # Scapy takes a part of a long one for extensions
    assert bytes(ip).startswith(quote)
    assert len(quote) == min(len(ip), 548 if version == 4 else 1232)


@pytest.mark.parametrize(
    "ip",
    [out(ICMP(type=8)), out(ICMPv6EchoRequest(), version=6), out(Raw(bytes(8)), proto=47)],
    ids=["ping", "ping6", "GRE"],
)
def test_a_ping_and_another_protocol_are_prohibited(ip: memoryview) -> None:
    error = answer(ip)
    assert (ICMP in error and error[ICMP].code == 13) or ICMPv6DestUnreach in error


def test_extension_headers_are_quoted() -> None:
    ip = out(IPv6ExtHdrHopByHop() / UDP(dport=53), version=6)
    assert bytes(answer(ip)[ICMPv6DestUnreach].payload) == bytes(ip)


@pytest.mark.parametrize(
    "ip",
    [
        out(ICMP(type=0)),
        out(ICMP(type=3, code=3) / Raw(bytes(28))),
        out(ICMP(type=13)),
        out(ICMPv6EchoReply(), version=6),
        out(ICMPv6DestUnreach() / Raw(bytes(48)), version=6),
        out(UDP(), to="224.0.0.251"),
        out(UDP(), to="255.255.255.255"),
        out(UDP(), to=NOBODY),
        out(TCP(flags="S"), to="127.0.0.1"),
        out(UDP(), to="ff02::fb", version=6),
        out(UDP(), to="::1", version=6),
        out(UDP(), frag=9),
        memoryview(bytes(IP(src=NOBODY, dst=PEER[4]) / UDP())),
        memoryview(bytes(IPv6(src="::", dst=PEER[6]) / UDP())),
    ],
)
def test_nobody_is_told(ip: memoryview) -> None:
    assert answer(ip) is None
