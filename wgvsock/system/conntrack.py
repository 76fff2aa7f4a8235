"""The kernel's connection tracking, through ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

Connection tracking follows the TCP window of each flow. Packets that it saw and that a broken tunnel lost make
retransmissions look out of window: such packets are INVALID, are not translated, and the connection dies. After an
interruption the flows of the enclave are therefore marked liberal, as a conntrack table that was restored from
elsewhere is (IP_CT_TCP_FLAG_BE_LIBERAL). The sysctl of that name would do so for all flows, but cannot be written in
a container.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

from wgvsock.settings import IpAddress, IpNetwork
from wgvsock.system.errors import NetfilterError
from wgvsock.system.rawnetlink import RawNetlink, attribute, attributes

_NETLINK_NETFILTER: Final = 12
_CT_NEW: Final = 0x0100  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW; without NLM_F_CREATE: change
_CT_GET: Final = 0x0101
_NFGENMSG: Final = struct.Struct("=BBH")  # family, version 0, resource 0

_CTA_TUPLE_ORIG: Final = 1
_CTA_TUPLE_REPLY: Final = 2
_CTA_PROTOINFO: Final = 4
_CTA_TUPLE_IP: Final = 1
_CTA_TUPLE_PROTO: Final = 2
_CTA_PROTO_NUM: Final = 1
_CTA_PROTOINFO_TCP: Final = 1
_CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: Final = 4
_CTA_PROTOINFO_TCP_FLAGS_REPLY: Final = 5
_NESTED: Final = 0x8000
_BE_LIBERAL: Final = 0x08


def forgive_interruption(networks: Collection[IpNetwork]) -> int:
    """Mark every TCP flow from or to these networks liberal; the number of flows. Blocks for milliseconds.

    Raises:
        NetfilterError: The kernel refused to tell its flows.
    """
    try:
        with RawNetlink(_NETLINK_NETFILTER) as channel:
            flows = [
                (body[0], tuples[_CTA_TUPLE_ORIG])
                for body in channel.dump(_CT_GET, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))
                if _concerns(tuples := dict(attributes(body[_NFGENMSG.size :])), networks)
            ]
            for family, original in flows:
                with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                    channel.change(_CT_NEW, liberal_change(family, original))
    except OSError as error:
        raise NetfilterError(
            "cannot adjust the kernel's connection tracking",
            why=error.strerror or str(error),
            fix="run with the capability NET_ADMIN on a kernel with nf_conntrack_netlink; connections may have to be"
            " made anew after an interruption",
        ) from error
    return len(flows)


def liberal_change(family: int, original: bytes) -> bytes:
    """The body of the request that marks one flow, named by its original tuple, liberal in both directions."""
    flags = struct.pack("BB", _BE_LIBERAL, _BE_LIBERAL)  # value and mask
    tcp = attribute(_CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, flags) + attribute(_CTA_PROTOINFO_TCP_FLAGS_REPLY, flags)
    information = attribute(_CTA_PROTOINFO_TCP | _NESTED, tcp)
    return (
        _NFGENMSG.pack(family, 0, 0)
        + attribute(_CTA_TUPLE_ORIG | _NESTED, original)
        + attribute(_CTA_PROTOINFO | _NESTED, information)
    )


def _concerns(tuples: dict[int, bytes], networks: Collection[IpNetwork]) -> bool:
    """Whether a flow is TCP and one of its four addresses lies in the networks."""
    addresses: list[IpAddress] = []
    for kind in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY):
        parts = dict(attributes(tuples.get(kind, b"")))
        protocol = dict(attributes(parts.get(_CTA_TUPLE_PROTO, b""))).get(_CTA_PROTO_NUM, b"")
        if protocol != bytes([socket.IPPROTO_TCP]):
            return False
        addresses += [ip_address(value) for _, value in attributes(parts.get(_CTA_TUPLE_IP, b""))]
    return any(address in network for address in addresses for network in networks)
