"""The text that ``wg`` shows and accepts for an endpoint, and the meaning of ``listen_port``, for each carrier.

Stock ``wg`` passes every ``endpoint=`` it receives to getaddrinfo(3), and rejects the whole device if one does not
parse. The text is therefore always a numeric IP address and a 16-bit port:

======  ========================  ===============================================  ===========================
carrier what ``wg`` shows         what it stands for                               ``listen_port=P`` listens at
======  ========================  ===============================================  ===========================
vsock   ``0.0.0.6:51820``         CID 6, port 51820; ``6:51820`` and               any CID, port P
                                  ``vm(6):51820`` are accepted as well
unix    ``127.0.0.1:51820``       ``/run/wgvsock/51820.sock``; port 0: a socket    ``/run/wgvsock/P.sock``
                                  with another name, or without a name
tcp     ``192.0.2.1:51820``,      itself                                           every IPv4 and IPv6 address
        ``[2001:db8::1]:51820``
udp     as tcp                    itself                                           every IPv4 and IPv6 address
======  ========================  ===============================================  ===========================
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from wgvsock.addresses import (
    VMADDR_CID_ANY,
    Address,
    HybridVsockAddress,
    Port,
    StreamAddress,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
    vsock_from_ipv4,
    vsock_to_ipv4,
)
from wgvsock.errors import ConfigurationError, LocalProtocolError
from wgvsock.runtime.directory import RUNTIME_DIRECTORY

UNIX_DIRECTORY: Final = RUNTIME_DIRECTORY

_UNIX_HOST: Final = "127.0.0.1"
_UNIX_NAME: Final = re.compile(r"([0-9]{1,5})\.sock")
_MAX_PORT: Final = 0xFFFF


class Carrier(StrEnum):
    """The transport of a device's datagrams: the choices of ``wgvsock device -n``."""

    VSOCK = "vsock"
    UNIX = "unix"
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class EndpointText:
    """Converts endpoints of one carrier to and from text.

    Args:
        carrier: The carrier of the endpoints.
        unix_directory: Directory of the Unix carrier's sockets. Both ends must see the same directory.
    """

    carrier: Carrier
    unix_directory: str = UNIX_DIRECTORY

    def parse(self, text: str) -> Address:
        """Read an endpoint as ``wg`` sends it.

        Raises:
            ConfigurationError: The text is not an endpoint of this carrier.
        """
        if self.carrier in {Carrier.TCP, Carrier.UDP}:
            return _unmapped(parse_address(f"{self.carrier}:{text}"))
        address = vsock_from_ipv4(text)
        if address.port > _MAX_PORT:
            raise ConfigurationError(
                f"cannot use port {address.port} on a device that wg controls",
                why=f"wg knows only 16-bit ports, and would show port {address.port & _MAX_PORT}",
                fix="choose a port up to 65535",
            )
        # The host of a Unix endpoint has no meaning: its socket is on this machine.
        return address if self.carrier is Carrier.VSOCK else self._unix_address(address.port)

    def format(self, address: Address) -> str:
        """Format an endpoint, whatever its address, so that ``wg`` can parse it."""
        match address:
            case VsockAddress():
                return vsock_to_ipv4(address)
            case TcpAddress() | UdpAddress():
                # A zone's name would break ``wg`` once that interface is gone. A number always parses.
                host, _, zone = address.host.partition("%")
                shown = address if zone.isdigit() else replace(address, host=host)
                return str(shown).partition(":")[2]
            case UnixAddress(path):
                return f"{_UNIX_HOST}:{self._unix_port(path)}"
            case HybridVsockAddress(_, port):
                return f"{_UNIX_HOST}:{port}"

    def listen_addresses(self, port: int) -> tuple[StreamAddress, ...]:
        """Addresses to listen on for ``listen_port=port`` over streams. Port 0: none, as in the paper's program."""
        if not port:
            return ()
        match self.carrier:
            case Carrier.VSOCK:
                return (VsockAddress(VMADDR_CID_ANY, Port(port)),)
            case Carrier.UNIX:
                return (self._unix_address(port),)
            case Carrier.TCP:
                return TcpAddress("0.0.0.0", Port(port)), TcpAddress("::", Port(port))  # noqa: S104  # as every WireGuard does
            case Carrier.UDP:
                raise LocalProtocolError("UDP sockets are opened by their transport, not listened on")

    def _unix_address(self, port: int) -> UnixAddress:
        return UnixAddress(f"{self.unix_directory}/{port}.sock")

    def _unix_port(self, path: str) -> int:
        directory, _, name = path.rpartition("/")
        found = _UNIX_NAME.fullmatch(name)
        return int(found[1]) if found and directory == self.unix_directory and int(found[1]) <= _MAX_PORT else 0


def _unmapped(address: Address) -> Address:
    """Convert ``[::ffff:192.0.2.1]`` to ``192.0.2.1``: our IPv6 sockets carry only IPv6."""
    if isinstance(address, TcpAddress | UdpAddress):
        ip = ipaddress.ip_address(address.host)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            return replace(address, host=str(ip.ipv4_mapped))
    return address
