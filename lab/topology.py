"""What every backend builds: four machines in a row, and their addresses. Pure description, no I/O.

::

    enclave                 pod                       node                        external
    ┌─────────┐   vsock   ┌───────────────────┐     ┌──────────────────────┐     ┌──────────────────┐
    │ wg0  .2 ├───────────┤ .1 wg0   eth0 .10 ├─────┤ .1 pod0   uplink0 .1 ├─────┤ .10 eth0         │
    └─────────┘           └───────────────────┘     └──────────────────────┘     └──────────────────┘
     10.73.0.0/24  fd73::/64   10.20.0.0/24  fd20::/64    198.51.100.0/24  2001:db8:100::/64

The pod is the Relay's: it has a veth to its node as from a CNI. The node routes and does no address translation, as
between two addresses of one VPC. It also answers on the cloud's metadata addresses, so that a test can distinguish
"denied" from "not there". The external machine is the rest of the Internet. The enclave has no interface except the one
that the Relay configures. With two enclaves (`TWO_ENCLAVES`) there is one more machine, whose tunnel ends in the same
pod at wg1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_interface
from typing import Final

from wgvsock.addresses import IpInterface


class Node(StrEnum):
    """A machine of the laboratory."""

    ENCLAVE = "enclave"
    POD = "pod"
    NODE = "node"
    EXTERNAL = "external"
    SECOND = "second"
    """A second enclave, if the plan has one."""


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
"""The points that are network interfaces. The vsock point is a byte stream."""


@dataclass(frozen=True, slots=True)
class Nic:
    """One end of a cable: an interface of a node with its addresses, and a fixed MAC for Scapy's frames."""

    node: Node
    name: str
    mac: str
    addresses: tuple[str, ...]

    @property
    def interfaces(self) -> tuple[IpInterface, ...]:
        """The addresses with their prefixes."""
        return tuple(ip_interface(address) for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two nodes."""

    left: Nic
    right: Nic


@dataclass(frozen=True, slots=True)
class Route:
    """A static route of one node. The destination ``default`` stands for both families, according to the gateway's."""

    node: Node
    destination: str
    gateway: str


@dataclass(frozen=True, slots=True)
class Service:
    """The server that runs in a node (`lab.guest.servers`)."""

    node: Node
    echo_port: int
    http_port: int
    dns_port: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """An enclave of the Relay.

    Attributes:
        node: Its machine.
        name: Its name at the Relay, if that serves several.
        interface: Its tunnel's end in the pod.
        enclave4: Its own IPv4 address, in a /24.
        enclave6: Its own IPv6 address, in a /64.
        relay4: The Relay's IPv4 address at the other end.
        relay6: The Relay's IPv6 address at the other end.
        application: What runs in it. Each port is published under its own number.
    """

    node: Node
    name: str
    interface: str
    enclave4: str
    enclave6: str
    relay4: str
    relay6: str
    application: Service

    @property
    def addresses(self) -> tuple[str, str]:
        """Its end of the tunnel, with prefixes."""
        return f"{self.enclave4}/24", f"{self.enclave6}/64"

    @property
    def relay_addresses(self) -> tuple[str, str]:
        """The Relay's end."""
        return f"{self.relay4}/24", f"{self.relay6}/64"


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole plan, with the addresses that tests and documents refer to by name."""

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
    """Every name below it resolves to the external machine (`lab.guest.servers`). ``.test`` is reserved (RFC 6761)."""
    neighbours: tuple[Tenant, ...] = ()
    """Additional enclaves."""

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """Every enclave."""
        ends = (self.enclave4, self.enclave6, self.relay4, self.relay6)
        return (Tenant(self.application.node, "first", "wg0", *ends, self.application), *self.neighbours)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every machine of the plan."""
        neighbours = [tenant.node for tenant in self.neighbours]
        return (Node.ENCLAVE, Node.POD, Node.NODE, Node.EXTERNAL, *neighbours)

    def tenant(self, node: Node) -> Tenant:
        """Return the enclave of a machine.

        Raises:
            LookupError: It is not an enclave.
        """
        for tenant in self.tenants:
            if tenant.node is node:
                return tenant
        raise LookupError(node)

    def nic(self, node: Node, name: str) -> Nic:
        """Return the interface of that name.

        Raises:
            LookupError: The plan has none.
        """
        for link in self.links:
            for nic in (link.left, link.right):
                if (nic.node, nic.name) == (node, name):
                    return nic
        raise LookupError(name)

    def service(self, node: Node) -> Service:
        """Return the server that the plan puts in a node.

        Raises:
            LookupError: There is none.
        """
        for service in self.services:
            if service.node is node:
                return service
        raise LookupError(node)

    def resolver_of(self, node: Node) -> str:
        """Return a node's /etc/resolv.conf, which is empty if it uses no name server."""
        return f"nameserver {self.external4}\n" if node in {Node.POD, Node.EXTERNAL} else ""


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

TWO_ENCLAVES: Final = replace(
    TOPOLOGY,
    neighbours=(
        Tenant(
            Node.SECOND,
            "second",
            "wg1",
            "10.74.0.2",
            "fd74::2",
            "10.74.0.1",
            "fd74::1",
            Service(Node.SECOND, echo_port=7008, http_port=8081),
        ),
    ),
)
