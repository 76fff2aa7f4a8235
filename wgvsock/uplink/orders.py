"""The messages between relay and engine other than packets: one JSON object per message.

The engine parses what an enclave sends, so the relay does not trust its reports: it checks the type and range of every
value.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any, Final

from wgvsock.addresses import IpAddress
from wgvsock.errors import RemoteProtocolError

MAX_MESSAGE: Final = 65_536
"""Bytes in one message, enough for about a thousand published ports."""

_MAX_COUNT: Final = 1 << 62


def network_of_relay(gateway: IPv4Address) -> IPv4Network:
    """The smallest usable network around the gateway, which libslirp redirects to this machine's loopback.

    In a smaller network, the gateway would be the broadcast address. libslirp (4.7, `sotranslate_in`) would then
    replace the source of every datagram to a published port with the gateway, and hide the client's address from the
    enclave.
    """
    host_bits = 2
    while int(gateway) & (1 << host_bits) - 1 == (1 << host_bits) - 1:
        host_bits += 1
    return IPv4Network((int(gateway) >> host_bits << host_bits, 32 - host_bits))


@dataclass(frozen=True, slots=True)
class Port:
    """A published port.

    Attributes:
        protocol: ``tcp`` or ``udp``.
        port: The port of this machine.
        address: The enclave's address that it is forwarded to.
        address_port: The enclave's port that it is forwarded to.
    """

    protocol: str
    port: int
    address: IpAddress
    address_port: int

    def __str__(self) -> str:
        """The port as ``wgvsock status`` shows it."""
        return f"{self.protocol}:{self.port}->{self.address}:{self.address_port}"


@dataclass(frozen=True, slots=True)
class Begin:
    """The first order.

    Attributes:
        addresses: The enclave's addresses.
        gateways: The relay's tunnel addresses, at most one of each IP version.
        max_connections: Maximum number of sockets for the enclave's flows, of all protocols.
        dns_port: The port of this machine's loopback that answers queries to port 53 of a gateway; 0 if there is none.
        reports: Path of a Unix socket that is forwarded to `report_port` of the first address; empty for none.
        report_port: The enclave's port.
    """

    addresses: tuple[IpAddress, ...]
    gateways: tuple[IpAddress, ...]
    max_connections: int
    dns_port: int = 0
    reports: str = ""
    report_port: int = 0

    def encode(self) -> bytes:
        """The message, as JSON in UTF-8."""
        values = asdict(self) | {
            "addresses": [str(address) for address in self.addresses],
            "gateways": [str(address) for address in self.gateways],
        }
        return json.dumps({"begin": values}).encode()


@dataclass(frozen=True, slots=True)
class Publish:
    """The order to forward exactly these ports to the enclave from now on.

    Attributes:
        ports: All of them.
        draining: Another enclave is taking over, so the connections of ports that are withdrawn stay.
    """

    ports: tuple[Port, ...] = ()
    draining: bool = False

    def encode(self) -> bytes:
        """The message, as JSON in UTF-8."""
        ports = [[one.protocol, one.port, str(one.address), one.address_port] for one in self.ports]
        return json.dumps({"publish": ports, "draining": self.draining}).encode()


@dataclass(frozen=True, slots=True)
class End:
    """The last order: end all connections, tell the enclave, and go."""

    def encode(self) -> bytes:
        """As a message."""
        return json.dumps({"end": {}}).encode()


@dataclass(frozen=True, slots=True)
class Report:
    """The state that the engine reports.

    Attributes:
        version: Version of libslirp.
        connections: Number of sockets that serve the enclave's flows now.
        tcp: Number of TCP connections among them, without the one through which the relay reads the agent's reports.
        crowded: Number of packets refused because the limit on sockets was reached.
        resident: Resident memory of the engine, in bytes.
        dropped: Number of packets for the enclave that the relay did not take in time.
        odd: Number of packets from the enclave that the stack does not get, such as fragments.
        published: Number of ports that are forwarded to the enclave.
        failed: The errno for each published port that could not be bound, by the port's text.
        sandbox: The restrictions that could not be applied to the process, by name.
    """

    version: str = ""
    connections: int = 0
    tcp: int = 0
    crowded: int = 0
    resident: int = 0
    dropped: int = 0
    odd: int = 0
    published: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    sandbox: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The message, as JSON in UTF-8."""
        return json.dumps(asdict(self)).encode()


def decode_order(message: bytes) -> Begin | Publish | End:
    """Decode an order from the relay, which the engine trusts.

    Raises:
        RemoteProtocolError: The message is not an order.
    """
    try:
        data = json.loads(message)
        if "begin" in data:
            values = data["begin"]
            for name in ("addresses", "gateways"):
                values[name] = tuple(ip_address(text) for text in values[name])
            return Begin(**values)
        if "end" in data:
            return End()
        ports = tuple(Port(a, b, ip_address(c), d) for a, b, c, d in data["publish"])
        return Publish(ports, draining=data["draining"] is True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RemoteProtocolError("an order for the engine cannot be read") from None


def decode_report(message: bytes) -> Report:
    """Decode a report from the engine, which the relay does not trust.

    Raises:
        RemoteProtocolError: The message is not a valid report.
    """
    try:
        data = json.loads(message)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise _refused()
    failed = data.get("failed")
    sandbox = data.get("sandbox")
    if not isinstance(failed, dict) or not isinstance(sandbox, list):
        raise _refused()
    return Report(
        version=_text(data.get("version")),
        connections=_count(data.get("connections")),
        tcp=_count(data.get("tcp")),
        crowded=_count(data.get("crowded")),
        resident=_count(data.get("resident")),
        dropped=_count(data.get("dropped")),
        odd=_count(data.get("odd")),
        published=_count(data.get("published")),
        failed={_text(key): _count(value) for key, value in failed.items()},
        sandbox=tuple(_text(one) for one in sandbox[:16]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise _refused()
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise _refused()
    return value


def _refused() -> RemoteProtocolError:
    return RemoteProtocolError("the engine's report cannot be read")
