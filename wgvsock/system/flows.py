"""Decides which tracked flows contradict the rules. No I/O: `wgvsock.system.conntrack` reads and deletes flows.

A flow meets the rules of address translation only once, with its first packet. Later packets keep the flow as it is,
whatever the rules say by then. A client that sent before its port was published never reaches the enclave, and one that
sent before the port was withdrawn still does. Flows of other programs must not be touched, so address, port, protocol
and direction are compared exactly.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from wgvsock.addresses import IpAddress
from wgvsock.system.filter.rules import PublishedPort

ASSURED: Final = 1 << 2
SOURCE_TRANSLATED: Final = 1 << 4
DESTINATION_TRANSLATED: Final = 1 << 5
"""Bits of a flow's status (IPS_… in linux/netfilter/nf_conntrack_common.h)."""

EARLY: Final = "early"
"""Kind of a deletion: the client sent before its port was published."""

WITHDRAWN: Final = "withdrawn"
"""Kind of a deletion: the port no longer leads to the enclave."""

ADDRESS_GONE: Final = "address_gone"
"""Kind of a deletion: the flow is masqueraded behind an address that this machine no longer has."""

ENDED: Final = "ended"
"""Kind of a deletion: the enclave's address is no longer served."""

_NAMES: Final[dict[int, Literal["tcp", "udp"]]] = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


class Flow(NamedTuple):
    """A flow between ports, as the kernel tracks it.

    Attributes:
        protocol: IP protocol number.
        source: Address that opened the flow.
        source_port: Its port, 0 if the protocol has none. The same holds for the other ports.
        destination: Destination of the first packet, before translation.
        destination_port: Its port.
        reply_source: Address that answers. It differs from the destination if that was translated.
        reply_source_port: Its port.
        reply_destination: Destination of the answers. It differs from the source if that was translated.
        status: IPS_… bits.
        name: The original tuple, as the kernel wrote it.
        identity: Distinguishes the flow from a later one with the same tuple.
    """

    protocol: int
    source: IpAddress
    source_port: int
    destination: IpAddress
    destination_port: int
    reply_source: IpAddress
    reply_source_port: int
    reply_destination: IpAddress
    status: int
    name: bytes = b""
    identity: bytes = b""


@dataclass(frozen=True, slots=True)
class WantedFlows:
    """The state that flows must agree with.

    Attributes:
        published: Ports that lead to the enclave.
        withdrawn: Ports that no longer lead to the enclave.
        arrivals: Addresses of this machine that clients of published ports use: those of the uplinks.
        local: All addresses of this machine.
        gone: Addresses that this machine no longer has.
        enclave: The enclave's own addresses.
        ended: Addresses that no longer belong to an enclave.
    """

    published: frozenset[PublishedPort] = frozenset()
    withdrawn: frozenset[PublishedPort] = frozenset()
    arrivals: frozenset[IpAddress] = frozenset()
    local: frozenset[IpAddress] = frozenset()
    gone: frozenset[IpAddress] = frozenset()
    enclave: frozenset[IpAddress] = frozenset()
    ended: frozenset[IpAddress] = frozenset()


def stale(flows: Iterable[Flow], wanted: WantedFlows) -> Iterator[tuple[str, Flow]]:
    """The flows that contradict what is wanted, each with the kind of contradiction."""
    open_ports = {(port.protocol, port.port, port.destination.version) for port in wanted.published}
    for flow in flows:
        if kind := _contradiction(flow, wanted, open_ports):
            yield kind, flow


def _contradiction(flow: Flow, wanted: WantedFlows, open_ports: Collection[tuple[str, int, int]]) -> str | None:
    is_led = bool(flow.status & DESTINATION_TRANSLATED)
    is_hidden = bool(flow.status & SOURCE_TRANSLATED)
    if (is_led and flow.reply_source in wanted.ended) or (is_hidden and flow.source in wanted.ended):
        return ENDED
    if is_hidden and flow.source in wanted.enclave and flow.reply_destination in wanted.gone:
        return ADDRESS_GONE
    protocol = _NAMES.get(flow.protocol)
    if protocol is None:
        return None
    if is_led:
        # Another program may lead to the same end, from a foreign address or another port.
        port = PublishedPort(protocol, flow.destination_port, flow.reply_source, flow.reply_source_port)
        arrived_here = flow.destination in wanted.local or flow.destination in wanted.gone
        return WITHDRAWN if port in wanted.withdrawn and arrived_here else None
    is_early = (
        (protocol, flow.destination_port, flow.destination.version) in open_ports
        and flow.destination in wanted.arrivals
        and flow.source not in wanted.local  # this machine's own packets do not arrive through the uplink
    )
    # An established TCP connection is with a program of this machine, and not ours to break. Datagrams have no
    # connection: as long as the client sends, nothing else would ever end the flow.
    return EARLY if is_early and not (protocol == "tcp" and flow.status & ASSURED) else None
