"""A packet that proves that other programs' rules let the enclave's packets through, and that we then drop.

It is a TCP SYN from the enclave's own address that the relay injects into its tunnel interface. It takes the path of
every packet from the enclave: address translation and every program's forward chains. After the last of them our own
rules count and drop it. If it is not counted, a policy such as ``iptables -P FORWARD DROP``, a reject rule of firewalld
or a redirection to a sidecar has taken it, and takes the enclave's packets as well.

If our rules happen to be missing at that moment, the probe gets no further than the gateway, where its hop limit ends.

The destinations are from the documentation ranges (RFC 5737, RFC 3849): no enclave talks to them.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.checksum import internet_checksum

DESTINATIONS: Final[dict[int, IpAddress]] = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
PORT: Final = 9
"""Discard (RFC 863)."""
SOURCE_PORTS: Final = range(32768, 61000)
"""Each probe uses another one: connection tracking then takes it for a new flow, whatever happened to earlier ones."""

_TCP: Final = 6
_HOPS: Final = 2
_SYN: Final = 0x02


def make_probe(source: IpAddress, number: int) -> bytes:
    """Build a probe.

    Args:
        source: An address of the enclave.
        number: Number of the probe, which selects its source port.

    Returns:
        The IP packet, checksums included.
    """
    destination = DESTINATIONS[source.version]
    # Ports, sequence numbers, length of the header in words, flags, window, checksum, urgent pointer.
    tcp = struct.pack("!HHIIBBHHH", SOURCE_PORTS[number % len(SOURCE_PORTS)], PORT, 0, 0, 5 << 4, _SYN, 1024, 0, 0)
    pseudo = source.packed + destination.packed + struct.pack("!II", len(tcp), _TCP)
    tcp = tcp[:16] + struct.pack("!H", internet_checksum(pseudo + tcp)) + tcp[18:]
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(tcp), _TCP, _HOPS) + source.packed + destination.packed + tcp
    addresses = source.packed + destination.packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, _HOPS, _TCP, 0) + addresses
    return header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:] + tcp
