"""One table of first packets and their verdicts, for everything that judges: the core, nft, and the enclave.

A case consists of the policy, the existing pins, one packet, and its verdict. `raw` makes the packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.egress.names import Pins
from wgvsock.egress.policy import Packet, Policy, Site
from wgvsock.egress.settings import PolicySettings
from wgvsock.settings import parse

SITE: Final = Site(
    relay=frozenset(map(ip_address, ("198.18.73.2", "fddc:7f99:d74c::2", "10.0.1.5", "2001:db8:1::5"))),
    resolvers=frozenset(map(ip_address, ("10.100.0.10", "169.254.20.10", "fd00:10::a"))),
    tunnels=(ip_network("198.18.73.2/31"), ip_network("fddc:7f99:d74c::2/127")),
)
ENCLAVE: Final = {4: ip_address("198.18.73.3"), 6: ip_address("fddc:7f99:d74c::3")}

OPEN: Final = ""
CLOSED: Final = 'default = "deny"'
POLICIES: Final = {
    "open": OPEN,
    "closed": CLOSED,
    "names": """
        default = "deny"
        allow = [
            {name = "www.lab.test", ports = [443]},
            {name = "*.example.com", protocol = "any"},
        ]
        deny = [{name = "admin.example.com"}, {network = "203.0.113.64/26"}]
    """,
    "networks": """
        default = "deny"
        allow = [
            {network = "10.20.0.0/16", ports = [80, 443]},
            {network = "10.20.0.0/16", protocol = "icmp"},
            {network = "10.30.0.0/16", protocol = "udp"},
            {network = "2001:db8:20::/48", protocol = "any"},
            {network = "0.0.0.0/0", ports = [8443]},
        ]
        deny = [{network = "10.20.66.0/24"}]
    """,
    "exceptions": """
        allow = [
            {network = "169.254.169.123/32", protocol = "udp", ports = [123]},
            {network = "fd00:ec2::23"},
            {relay = true, ports = [8080]},
        ]
        deny = [{network = "10.0.0.0/8"}, {network = "2001:db8:66::/48", protocol = "tcp", ports = [25]}]
    """,
}
"""In TOML, as in the table ``[egress]``."""

PINS: Final = {
    "www.lab.test": ("203.0.113.10", "2001:db8:9::10"),
    "a.example.com": ("203.0.113.20", "203.0.113.70"),
    "elsewhere.test": ("203.0.113.30",),
}
"""The answers to queries under the policy "names", the last of them under another policy."""


@dataclass(frozen=True, slots=True)
class Case:
    """One packet. `by` is the reason, or the key of the rule."""

    policy: str
    packet: Packet
    allowed: bool
    by: str

    def __str__(self) -> str:
        packet = self.packet
        return f"{self.policy}-{packet.destination}-{packet.protocol}-{packet.port}"


def policy(name: str) -> Policy:
    """One of `POLICIES`."""
    return parse(PolicySettings, POLICIES[name]).policy()


def pins(now: float) -> Pins:
    """`PINS`, which last a minute and the grace from now."""
    made = Pins()
    for name, addresses in PINS.items():
        made.pin(name, [(ip_address(address), 2.0) for address in addresses], now)
    return made


TCP, UDP, PING, PING6 = 6, 17, 1, 58


_TABLE: Final = {
    # Policy -> destination, protocol, port or ICMP type, what becomes of it and why.
    "open": """
        203.0.113.1        tcp  443   allowed  default
        203.0.113.1        udp  443   allowed  default
        203.0.113.1        icmp 8     allowed  default
        2001:db8::1        tcp  443   allowed  default
        2001:db8::1        icmp 128   allowed  default
        203.0.113.1        icmp 13    denied   protocol
        203.0.113.1        47   0     denied   protocol
        203.0.113.1        115  0     denied   protocol
        2001:db8::1        50   0     denied   protocol
        2001:db8::1        icmp 139   denied   protocol
        169.254.169.254    tcp  80    denied   closed network
        169.254.170.23     tcp  80    denied   closed network
        169.254.169.254    icmp 8     denied   closed network
        fd00:ec2::254      tcp  80    denied   closed network
        64:ff9b::a9fe:a9fe tcp  80    denied   closed network
        64:ff9b:1::a9fe:a9fe tcp 80   denied   closed network
        2002:a9fe:a9fe::1  tcp  80    denied   closed network
        64:ff9b::cb00:7101 tcp  80    allowed  default
        169.254.20.10      udp  53    allowed  resolver
        169.254.20.10      tcp  53    allowed  resolver
        169.254.20.10      tcp  80    denied   closed network
        10.100.0.10        udp  53    allowed  resolver
        198.18.73.2        icmp 8     allowed  relay ping
        fddc:7f99:d74c::2  icmp 128   allowed  relay ping
        198.18.73.2        tcp  9808  denied   relay machine
        10.0.1.5           tcp  8080  denied   relay machine
        2001:db8:1::5      udp  8080  denied   relay machine
    """,
    "closed": """
        203.0.113.1        tcp  443   denied   default
        203.0.113.1        udp  53    denied   default
        203.0.113.1        icmp 8     denied   default
        2001:db8::1        tcp  443   denied   default
        10.100.0.10        tcp  53    allowed  resolver
        10.100.0.10        tcp  80    denied   default
        fd00:10::a         udp  53    allowed  resolver
        198.18.73.2        icmp 8     allowed  relay ping
        169.254.169.254    tcp  80    denied   closed network
    """,
    "names": """
        203.0.113.10       tcp  443   allowed  allow 1
        2001:db8:9::10     tcp  443   allowed  allow 1
        203.0.113.10       tcp  80    denied   default
        203.0.113.10       udp  443   denied   default
        203.0.113.10       icmp 8     denied   default
        203.0.113.20       tcp  22    allowed  allow 2
        203.0.113.20       udp  443   allowed  allow 2
        203.0.113.20       icmp 8     allowed  allow 2
        203.0.113.70       tcp  443   denied   deny 2
        203.0.113.30       tcp  443   denied   default
        203.0.113.11       tcp  443   denied   default
        64:ff9b::cb00:710a tcp  443   denied   default
    """,
    "networks": """
        10.20.1.1          tcp  443   allowed  allow 1
        10.20.1.1          tcp  80    allowed  allow 1
        10.20.1.1          tcp  22    denied   default
        10.20.1.1          icmp 8     allowed  allow 2
        10.20.66.1         tcp  443   denied   deny 1
        10.20.66.1         icmp 8     denied   deny 1
        10.30.0.1          udp  5000  allowed  allow 3
        10.30.0.1          tcp  5000  denied   default
        10.21.0.1          tcp  443   denied   default
        2001:db8:20::1     tcp  22    allowed  allow 4
        2001:db8:20::1     icmp 128   allowed  allow 4
        2001:db8:21::1     tcp  22    denied   default
        203.0.113.1        tcp  8443  allowed  allow 5
        169.254.169.254    tcp  8443  denied   closed network
        10.0.1.5           tcp  8443  denied   relay machine
    """,
    "exceptions": """
        169.254.169.123    udp  123   allowed  allow 1
        169.254.169.123    tcp  123   denied   closed network
        169.254.169.254    udp  123   denied   closed network
        fd00:ec2::23       tcp  80    allowed  allow 2
        fd00:ec2::254      tcp  80    denied   closed network
        198.18.73.2        tcp  8080  allowed  allow 3
        2001:db8:1::5      tcp  8080  allowed  allow 3
        198.18.73.2        udp  8080  denied   relay machine
        198.18.73.2        tcp  22    denied   relay machine
        10.1.2.3           tcp  443   denied   deny 1
        10.1.2.3           icmp 8     denied   deny 1
        64:ff9b::a01:203   tcp  443   denied   deny 1
        10.100.0.10        udp  53    allowed  resolver
        2001:db8:66::1     tcp  25    denied   deny 2
        2001:db8:66::1     tcp  26    allowed  default
        203.0.113.1        tcp  443   allowed  default
    """,
}


def _cases() -> Iterator[Case]:
    for name, table in _TABLE.items():
        for line in table.strip().splitlines():
            address, protocol, port, what, by = line.split(maxsplit=4)
            destination = ip_address(address)
            numbers = {"tcp": TCP, "udp": UDP, "icmp": PING if destination.version == 4 else PING6}
            number = numbers.get(protocol) or int(protocol)
            yield Case(name, Packet(destination, number, int(port)), what == "allowed", by)


CASES: Final = tuple(_cases())


def raw(packet: Packet, source_port: int = 40000) -> bytes:
    """The IP packet, from the enclave: a SYN, a datagram with one byte, or an echo request."""
    source = ENCLAVE[packet.destination.version]
    payload = _payload(packet, source, source_port)
    addresses = source.packed + packet.destination.packed
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload), packet.protocol, 64) + addresses + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, packet.protocol, 0) + addresses
    return header[:10] + _checksum(header) + header[12:] + payload


def _payload(packet: Packet, source: IpAddress, source_port: int) -> bytes:
    match packet.protocol:
        case 6:
            made, at = struct.pack("!HHIIBBHHH", source_port, packet.port, 1, 0, 5 << 4, 2, 1024, 0, 0), 16
        case 17:
            made, at = struct.pack("!HHHH", source_port, packet.port, 9, 0) + b"x", 6
        case 1 | 58:
            made, at = struct.pack("!BBHHH", packet.port, 0, 0, source_port, 1), 2
        case _:
            return struct.pack("!HHI", source_port, packet.port, 0)
    pseudo = b""
    if packet.protocol != 1:
        pseudo = source.packed + packet.destination.packed + struct.pack("!II", len(made), packet.protocol)
    return made[:at] + _checksum(pseudo + made) + made[at + 2 :]


def _checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


MAPPED: Final = IPv6Address("::ffff:169.254.169.254")
"""Not in the table: no kernel sends it."""
