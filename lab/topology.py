"""What every backend builds: four machines in a row, and their addresses. Pure description, no I/O.

::

    enclave                 pod                       node                        external
    ┌─────────┐   vsock   ┌───────────────────┐     ┌──────────────────────┐     ┌──────────────────┐
    │ wg0  .2 ├───────────┤ .1 wg0   eth0 .10 ├─────┤ .1 pod0   uplink0 .1 ├─────┤ .10 eth0         │
    └─────────┘           └───────────────────┘     └──────────────────────┘     └──────────────────┘
     10.73.0.0/24  fd73::/64   10.20.0.0/24  fd20::/64    198.51.100.0/24  2001:db8:100::/64

The pod is the Relay's: it has a veth to its node as a CNI would give it. The node routes and does no address
translation, as between two addresses of one VPC; it also answers on the cloud's metadata addresses, so that a test can
tell "denied" from "not there". The external machine is the rest of the world. The enclave has no interface but what the
Relay gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final

Interface = IPv4Interface | IPv6Interface


class Node(StrEnum):
    """A machine of the laboratory."""

    ENCLAVE = "enclave"
    POD = "pod"
    NODE = "node"
    EXTERNAL = "external"


class Point(StrEnum):
    """Where packets or bytes can be watched."""

    ENCLAVE_WG0 = "enclave.wg0"
    VSOCK = "vsock"
    RELAY_WG0 = "relay.wg0"
    RELAY_ETH0 = "relay.eth0"
    EXTERNAL_ETH0 = "external.eth0"


PACKET_POINTS: Final = {
    Point.ENCLAVE_WG0: (Node.ENCLAVE, "wg0"),
    Point.RELAY_WG0: (Node.POD, "wg0"),
    Point.RELAY_ETH0: (Node.POD, "eth0"),
    Point.EXTERNAL_ETH0: (Node.EXTERNAL, "eth0"),
}
"""The points that are network interfaces; the vsock point is a byte stream."""


@dataclass(frozen=True, slots=True)
class Nic:
    """One end of a cable: an interface of a node with its addresses; a fixed MAC, so that Scapy can write frames."""

    node: Node
    name: str
    mac: str
    addresses: tuple[str, ...]

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The addresses with their prefixes."""
        return tuple(ip_interface(address) for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two nodes."""

    left: Nic
    right: Nic


@dataclass(frozen=True, slots=True)
class Route:
    """A static route of one node; the destination ``default`` stands for both families by the gateway's."""

    node: Node
    destination: str
    gateway: str


@dataclass(frozen=True, slots=True)
class Service:
    """The server that runs in a node (`lab.servers`)."""

    node: Node
    echo_port: int
    http_port: int
    dns_port: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole plan, with the addresses that tests and documents speak of by name."""

    links: tuple[Link, ...]
    routes: tuple[Route, ...]
    routers: tuple[Node, ...]
    services: tuple[Service, ...]
    application: Service
    enclave4: str = "10.73.0.2"
    enclave6: str = "fd73::2"
    relay4: str = "10.73.0.1"
    relay6: str = "fd73::1"
    pod4: str = "10.20.0.10"
    pod6: str = "fd20::10"
    external4: str = "198.51.100.10"
    external6: str = "2001:db8:100::10"
    metadata4: str = "169.254.169.254"
    metadata6: str = "fd00:ec2::254"
    zone: str = "lab.test"
    """Every name below it resolves to the external machine (`lab.servers`); ``.test`` is reserved (RFC 6761)."""

    def nic(self, node: Node, name: str) -> Nic:
        """The interface of that name.

        Raises:
            LookupError: The plan has none.
        """
        for link in self.links:
            for nic in (link.left, link.right):
                if (nic.node, nic.name) == (node, name):
                    return nic
        raise LookupError(name)

    def service(self, node: Node) -> Service:
        """The server that the plan puts in a node.

        Raises:
            LookupError: There is none.
        """
        for service in self.services:
            if service.node is node:
                return service
        raise LookupError(node)


TOPOLOGY: Final = Topology(
    links=(
        Link(
            Nic(Node.POD, "eth0", "02:77:67:00:00:10", ("10.20.0.10/24", "fd20::10/64")),
            Nic(
                Node.NODE,
                "pod0",
                "02:77:67:00:00:01",
                ("10.20.0.1/24", "fd20::1/64", "169.254.169.254/32", "fd00:ec2::254/128"),
            ),
        ),
        Link(
            Nic(Node.NODE, "uplink0", "02:77:67:00:01:01", ("198.51.100.1/24", "2001:db8:100::1/64")),
            Nic(Node.EXTERNAL, "eth0", "02:77:67:00:01:10", ("198.51.100.10/24", "2001:db8:100::10/64")),
        ),
    ),
    routes=(
        Route(Node.POD, "default", "10.20.0.1"),
        Route(Node.POD, "default", "fd20::1"),
        Route(Node.EXTERNAL, "default", "198.51.100.1"),
        Route(Node.EXTERNAL, "default", "2001:db8:100::1"),
    ),
    routers=(Node.NODE,),
    services=(
        Service(Node.NODE, echo_port=7, http_port=80),
        Service(Node.EXTERNAL, echo_port=7, http_port=80, dns_port=53),
    ),
    application=Service(Node.ENCLAVE, echo_port=7007, http_port=8080),
)
