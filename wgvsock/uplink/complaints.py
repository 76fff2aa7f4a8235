"""Reads the ICMP errors that a socket's packets have caused, and turns them into packets for the enclave.

libslirp forwards the errors of datagrams, but with a wrong MTU if a link is too narrow. So the engine reads the error
queue of a socket before libslirp does.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from wgvsock.uplink.icmp import FAMILIES, Family, datagram, error_packet

_QUOTED: Final = 1280
"""Bytes of a packet that an ICMP error returns at most. Routers quote fewer."""

_EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
"""struct sock_extended_err (linux/errqueue.h): errno, origin, type, code, info, data. The sender's address follows."""
_FROM_ICMP: Final = {2: 4, 3: 6}
"""SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6, with their IP version."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """One ICMP error.

    Attributes:
        router: The sender's address, packed.
        kind: Type and code.
        info: The MTU, or 0.
        message: The quoted payload of the packet. For a ping it includes the ICMP header.
        destination: Address and port of the packet.
    """

    router: bytes
    kind: tuple[int, int]
    info: int
    message: bytes
    destination: tuple[str, int]


def heard(sock: socket.socket, family: Family) -> Complaint | None:
    """The next ICMP error in a socket's queue, or None if there is none.

    Raises:
        OSError: The socket is broken.
    """
    try:
        message, ancillary, _, name = sock.recvmsg(_QUOTED, 256, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return None
    for level, option, data in ancillary:
        if (level, option) != (family.level, family.errors_option) or len(data) < _EXTENDED_ERROR.size:
            continue
        _, origin, type_, code, info, _ = _EXTENDED_ERROR.unpack_from(data)
        if FAMILIES.get(_FROM_ICMP.get(origin, 0)) is family:
            kind, router = (type_, code), data[_EXTENDED_ERROR.size :][family.in_sockaddr]
            return Complaint(router, kind, info if kind == family.too_big else 0, message, (name or ("", 0))[:2])
    return None


def of_datagram(fd: int, end: bytes, gateways: Mapping[int, bytes]) -> bytes | None:
    """The next ICMP error of a datagram socket, as a packet for the enclave, or None if there is none.

    Args:
        fd: Descriptor of the socket, which belongs to libslirp.
        end: The enclave's source address and port, packed.
        gateways: The relay's addresses in the tunnel, packed, by IP version. libslirp maps them to the loopback.
    """
    source, port = end[:-2], int.from_bytes(end[-2:], "big")
    family = FAMILIES[4 if len(source) == 4 else 6]
    sock = socket.socket(fileno=fd)
    try:
        complaint = heard(sock, family)
    except OSError:
        return None
    finally:
        sock.detach()
    if complaint is None:
        return None
    host, to_port = complaint.destination
    to, router = ip_address(host), complaint.router
    destination = to.packed
    if to.is_loopback and family.version in gateways:
        destination = router = gateways[family.version]
    sent = datagram(family, source, destination, (port, to_port), complaint.message)
    return error_packet(family, router, sent, complaint.kind, complaint.info)
