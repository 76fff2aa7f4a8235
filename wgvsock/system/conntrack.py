"""The kernel's connection tracking, through ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

Connection tracking follows the TCP window of each flow. When a broken tunnel loses packets that connection tracking has
seen, retransmissions look out of window. They are then INVALID and not translated, and the connection dies. After an
interruption the enclave's flows are therefore marked liberal (IP_CT_TCP_FLAG_BE_LIBERAL), like the flows of a conntrack
table that was restored from elsewhere. The sysctl of that name would affect all flows, and cannot be written in a
container.

A flow meets the rules of address translation only once, with its first packet. `wgvsock.system.flows` decides which
flows contradict the current rules. Those are deleted here, and their next packet meets the rules again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from wgvsock.addresses import IpAddress, IpNetwork
from wgvsock.runtime.journal import Performer
from wgvsock.system.errors import NetfilterError
from wgvsock.system.flows import DESTINATION_TRANSLATED, SOURCE_TRANSLATED, Flow, WantedFlows, stale
from wgvsock.system.rawnetlink import RawNetlink, attribute, attributes

_NETLINK_NETFILTER: Final = 12
_CT_NEW: Final = 0x0100  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW; without NLM_F_CREATE: change
_CT_GET: Final = 0x0101
_CT_DELETE: Final = 0x0102
_NFGENMSG: Final = struct.Struct("=BBH")  # family, version 0, resource 0

_CTA_TUPLE_ORIG: Final = 1
_CTA_TUPLE_REPLY: Final = 2
_CTA_STATUS: Final = 3
_CTA_PROTOINFO: Final = 4
_CTA_ID: Final = 12
_CTA_ZONE: Final = 18
_CTA_FILTER: Final = 25
_CTA_STATUS_MASK: Final = 26
_CTA_TUPLE_IP: Final = 1
_CTA_TUPLE_PROTO: Final = 2
_CTA_TUPLE_ZONE: Final = 3
_CTA_IP_V4_SOURCE: Final = 1
_CTA_PROTO_NUM: Final = 1
_CTA_PROTO_SOURCE_PORT: Final = 2
_CTA_PROTO_DESTINATION_PORT: Final = 3
_CTA_PROTOINFO_TCP: Final = 1
_CTA_PROTOINFO_TCP_STATE: Final = 1
_CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: Final = 4
_CTA_PROTOINFO_TCP_FLAGS_REPLY: Final = 5
_NESTED: Final = 0x8000
_BE_LIBERAL: Final = 0x08
_ALIVE: Final = frozenset(bytes([state]) for state in range(1, 7))
"""TCP_CONNTRACK_SYN_SENT to LAST_ACK (linux/netfilter/nf_conntrack_tcp.h): before TIME_WAIT and CLOSE."""

# Fields of a tuple that a dump is filtered by (CTA_FILTER_F_… in the kernel's nf_internals.h, since Linux 5.8).
_BY_SOURCE: Final = 1 << 0
_BY_PROTOCOL: Final = 1 << 3
_BY_SOURCE_PORT: Final = 1 << 4
_BY_DESTINATION_PORT: Final = 1 << 5

FLOWS: Final = "flows"
"""Kind of the undo that deletes the flows of an enclave's address."""

_MAX_PORT_FILTERS: Final = 16
"""Ports of a protocol that are queried one by one. Each costs the kernel a walk through its whole table."""

_PROTOCOLS: Final[dict[str, int]] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

_TABLE_SIZE: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")

_log = logging.getLogger(__name__)


def table_size() -> int | None:
    """Number of flows that this machine can track, for all programs and namespaces together. None if unknown.

    A machine whose table is full drops the first packet of every new flow, whoever sent it
    (Documentation/networking/nf_conntrack-sysctl.rst).
    """
    try:
        return int(_TABLE_SIZE.read_text("ascii"))
    except (OSError, ValueError):
        return None  # connection tracking is loaded by the first rule that needs it


def delete_stale(wanted: WantedFlows) -> Counter[str]:
    """Delete the flows that contradict what is wanted.

    Blocks for 40 µs for each flow that the kernel reports. Memory use does not depend on their number.

    Returns:
        The number of deleted flows by kind.

    Raises:
        NetfilterError: The kernel refused.
    """
    deleted: Counter[str] = Counter()
    with (
        _explained("stale flows stay in use until they have been idle for minutes"),
        RawNetlink(_NETLINK_NETFILTER) as reader,
        RawNetlink(_NETLINK_NETFILTER) as writer,
    ):
        for request in requests(wanted):
            flows = (flow for body in reader.dump(_CT_GET, request) if (flow := parse_flow(body)))
            for kind, flow in stale(flows, wanted):
                with contextlib.suppress(FileNotFoundError):  # it has ended in the meantime
                    writer.change(_CT_DELETE, deletion(flow))
                    deleted[kind] += 1
    return deleted


def requests(wanted: WantedFlows) -> Iterator[bytes]:
    """Make the dump requests that together return all flows that may be `stale`.

    The kernel filters. A kernel before Linux 5.8 returns everything, which is just as correct and takes longer.

    Yields:
        Bodies of requests, without netlink headers.
    """
    led, hidden = (DESTINATION_TRANSLATED, True), (SOURCE_TRANSLATED, True)
    ports: dict[tuple[str, int], set[int]] = {}
    for port in wanted.published:
        ports.setdefault((port.protocol, port.destination.version), set()).add(port.port)
    for (protocol, version), numbers in ports.items():
        # A flow whose destination is translated has met rules already, ours or another program's.
        for number in numbers if len(numbers) <= _MAX_PORT_FILTERS else (None,):
            yield _request(
                version, _CTA_TUPLE_ORIG, (DESTINATION_TRANSLATED, False), protocol=protocol, destination_port=number
            )
    ends = {(port.protocol, port.destination, port.destination_port) for port in wanted.withdrawn}
    for protocol, end, number in ends:
        yield _request(end.version, _CTA_TUPLE_REPLY, led, source=end, protocol=protocol, source_port=number)
    for address in wanted.ended:
        yield _request(address.version, _CTA_TUPLE_REPLY, led, source=address)
    for address in wanted.ended | (wanted.enclave if wanted.gone else frozenset()):
        yield _request(address.version, _CTA_TUPLE_ORIG, hidden, source=address)


def _request(
    version: int,
    direction: int,
    status: tuple[int, bool],
    *,
    source: IpAddress | None = None,
    protocol: str | None = None,
    source_port: int | None = None,
    destination_port: int | None = None,
) -> bytes:
    """The body of a dump request that the kernel filters.

    Args:
        version: IP version.
        direction: CTA_TUPLE_ORIG or CTA_TUPLE_REPLY: the packets that the remaining arguments describe.
        status: A bit of `Flow.status`, and whether it is set.
        source: Source address.
        protocol: Required if a port is given.
        source_port: Source port.
        destination_port: Destination port.
    """
    chosen, addresses, inner = 0, b"", b""
    # Linux returns the IPv6 flows of every address but the wanted one: its comparison is inverted (still in 6.18).
    if source is not None and version == 4:
        chosen |= _BY_SOURCE
        addresses = attribute(_CTA_IP_V4_SOURCE, source.packed)
    if protocol is not None:
        chosen |= _BY_PROTOCOL
        inner += attribute(_CTA_PROTO_NUM, bytes([_PROTOCOLS[protocol]]))
    for flag, kind, port in (
        (_BY_SOURCE_PORT, _CTA_PROTO_SOURCE_PORT, source_port),
        (_BY_DESTINATION_PORT, _CTA_PROTO_DESTINATION_PORT, destination_port),
    ):
        if port is not None:
            chosen |= flag
            inner += attribute(kind, port.to_bytes(2, "big"))
    bit, is_set = status
    return (
        _NFGENMSG.pack(_FAMILIES[version], 0, 0)
        + attribute(
            direction | _NESTED,
            attribute(_CTA_TUPLE_IP | _NESTED, addresses) + attribute(_CTA_TUPLE_PROTO | _NESTED, inner),
        )
        # CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS have the numbers of the tuples. The flags are in native byte
        # order.
        + attribute(_CTA_FILTER | _NESTED, attribute(direction, struct.pack("=I", chosen)))
        + attribute(_CTA_STATUS, (bit if is_set else 0).to_bytes(4, "big"))
        + attribute(_CTA_STATUS_MASK, bit.to_bytes(4, "big"))
    )


def parse_flow(body: bytes) -> Flow | None:
    """Parse one message of a dump.

    Args:
        body: The message after its netlink header.

    Returns:
        The flow, or None if it is malformed or in another zone, which our rules do not cover.
    """
    parts = dict(attributes(body[_NFGENMSG.size :]))
    original, reply = (_parse_tuple(parts.get(kind, b"")) for kind in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY))
    if original is None or reply is None or _CTA_ZONE in parts:
        return None
    protocol, source, destination, source_port, destination_port = original
    _, reply_source, reply_destination, reply_source_port, _ = reply
    return Flow(
        protocol,
        source,
        source_port,
        destination,
        destination_port,
        reply_source,
        reply_source_port,
        reply_destination,
        int.from_bytes(parts.get(_CTA_STATUS, b""), "big"),
        parts[_CTA_TUPLE_ORIG],
        parts.get(_CTA_ID, b""),
    )


def _parse_tuple(data: bytes) -> tuple[int, IpAddress, IpAddress, int, int] | None:
    """Protocol, source, destination, and their ports, which are 0 if the protocol has none."""
    parts = dict(attributes(data))
    addresses = [value for _, value in attributes(parts.get(_CTA_TUPLE_IP, b""))]
    inner = dict(attributes(parts.get(_CTA_TUPLE_PROTO, b"")))
    if len(addresses) != 2 or _CTA_TUPLE_ZONE in parts or not inner:
        return None
    return (
        inner.get(_CTA_PROTO_NUM, b"\0")[0],
        ip_address(addresses[0]),
        ip_address(addresses[1]),
        int.from_bytes(inner.get(_CTA_PROTO_SOURCE_PORT, b""), "big"),
        int.from_bytes(inner.get(_CTA_PROTO_DESTINATION_PORT, b""), "big"),
    )


def deletion(flow: Flow) -> bytes:
    """Make the request that deletes exactly this flow.

    It always contains a tuple: without one, the kernel would delete its whole table.

    Returns:
        The request's body, without netlink header.
    """
    named = attribute(_CTA_TUPLE_ORIG | _NESTED, flow.name) + attribute(_CTA_ID, flow.identity)
    return _NFGENMSG.pack(_FAMILIES[flow.source.version], 0, 0) + named


def performers(delete: Callable[[WantedFlows], Awaitable[object]]) -> dict[str, Performer]:
    """The function that undoes what rules left in connection tracking, for a `Journal`.

    Args:
        delete: `delete_stale` in a thread, or a test double.
    """

    async def forget_enclave(address: str, _: object) -> None:
        """Delete an address's flows: without the enclave's interface their packets would leave elsewhere, in clear."""
        try:
            await delete(WantedFlows(ended=frozenset({ip_address(address)})))
        except NetfilterError as error:
            _log.warning("%s", error)  # a kernel that cannot do it now cannot do it at the next start either

    return {FLOWS: forget_enclave}


def forgive_interruption(networks: Collection[IpNetwork]) -> int:
    """Mark every TCP flow from or to these networks liberal. Blocks for milliseconds.

    Returns:
        The number of flows.

    Raises:
        NetfilterError: The kernel refused to list its flows.
    """
    with (
        _explained("connections may have to be re-established after an interruption"),
        RawNetlink(_NETLINK_NETFILTER) as channel,
    ):
        flows = [
            (body[0], tuples[_CTA_TUPLE_ORIG])
            for body in channel.dump(_CT_GET, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))
            if _concerns(tuples := dict(attributes(body[_NFGENMSG.size :])), networks)
        ]
        for family, original in flows:
            with contextlib.suppress(FileNotFoundError):  # it has ended in the meantime
                channel.change(_CT_NEW, liberal_change(family, original))
    return len(flows)


@contextlib.contextmanager
def _explained(otherwise: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NetfilterError(
            "cannot use the kernel's connection tracking",
            why=error.strerror or str(error),
            fix=f"run with the capability NET_ADMIN on a kernel with nf_conntrack_netlink: without it, {otherwise}",
        ) from error


def count_connections(networks: Collection[IpNetwork]) -> int:
    """Count the TCP connections from or to these networks that are not closed by both ends. Blocks for milliseconds.

    Connections inside the networks do not count: the relay reads the reports of an enclave's application as long as
    both run.

    Raises:
        NetfilterError: The kernel refused to list its flows.
    """
    with _explained("open connections are not waited for"), RawNetlink(_NETLINK_NETFILTER) as channel:
        return sum(
            _is_alive(parts)
            for body in channel.dump(_CT_GET, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))
            if set(_lie_in(parts := dict(attributes(body[_NFGENMSG.size :])), networks)) == {True, False}
        )


def _is_alive(parts: dict[int, bytes]) -> bool:
    tcp = dict(attributes(dict(attributes(parts.get(_CTA_PROTOINFO, b""))).get(_CTA_PROTOINFO_TCP, b"")))
    return tcp.get(_CTA_PROTOINFO_TCP_STATE, b"") in _ALIVE


def liberal_change(family: int, original: bytes) -> bytes:
    """Make the request that marks one flow liberal in both directions.

    Args:
        family: AF_INET or AF_INET6.
        original: The flow's original tuple, as the kernel wrote it.

    Returns:
        The request's body, without netlink header.
    """
    flags = struct.pack("BB", _BE_LIBERAL, _BE_LIBERAL)  # value and mask
    tcp = attribute(_CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, flags) + attribute(_CTA_PROTOINFO_TCP_FLAGS_REPLY, flags)
    information = attribute(_CTA_PROTOINFO_TCP | _NESTED, tcp)
    return (
        _NFGENMSG.pack(family, 0, 0)
        + attribute(_CTA_TUPLE_ORIG | _NESTED, original)
        + attribute(_CTA_PROTOINFO | _NESTED, information)
    )


def _concerns(tuples: dict[int, bytes], networks: Collection[IpNetwork]) -> bool:
    """Whether a flow is TCP and at least one of its four addresses is in the networks."""
    return any(_lie_in(tuples, networks))


def _lie_in(tuples: dict[int, bytes], networks: Collection[IpNetwork]) -> list[bool]:
    """For each of a TCP flow's four addresses, whether it is in the networks. Empty for any other flow."""
    addresses: list[IpAddress] = []
    for kind in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY):
        parts = dict(attributes(tuples.get(kind, b"")))
        protocol = dict(attributes(parts.get(_CTA_TUPLE_PROTO, b""))).get(_CTA_PROTO_NUM, b"")
        if protocol != bytes([socket.IPPROTO_TCP]):
            return []
        addresses += [ip_address(value) for _, value in attributes(parts.get(_CTA_TUPLE_IP, b""))]
    return [any(address in network for network in networks) for address in addresses]
