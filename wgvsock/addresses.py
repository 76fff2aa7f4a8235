"""Endpoint addresses: one value type for each kind of endpoint, parsed from text and formatted to text.

Text forms (``parse_address`` and ``str()`` are inverses):

* ``vsock:16:51820``            AF_VSOCK, context identifier (CID) 16, port 51820 (vsock(7)); ``vm(16):51820``,
  ``host(2):…``, ``local(1):…`` and ``hypervisor(0):…``, as Go programs print them, are also accepted
* ``unix:/run/enclave.sock``    Unix stream socket
* ``hybrid:/run/v.sock:51820``  Unix stream socket of a virtual machine monitor that forwards ``CONNECT 51820`` to the
  guest's vsock port ("hybrid vsock": Firecracker, Cloud Hypervisor, vhost-device-vsock)
* ``tcp:127.0.0.1:51820``, ``tcp:[::1]:51820``, ``udp:…``

Which CIDs may be used, and by whom:

========================  ==============================================================================================
0, the hypervisor         never dialled: no WireGuard end listens there (`is_dialable`)
1, this machine           the operator only, in a configuration: two services on one machine (vsock_loopback)
2, the host               the operator only: it is the parent inside a QEMU guest, the lab's guests included
3, the parent on Nitro    the operator only: the enclave's ``parent_cid``
4 to 2^32-2               the operator and ``nitro-cli``: an enclave (`enclave_cid`)
2^32-1, any               listeners only, and as a placeholder for an enclave that has yet to be launched
========================  ==============================================================================================

A CID or port that does not fit into ``struct sockaddr_vm`` is rejected at construction: Python's own ``connect``
truncates such a number to 32 bits and dials the result.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, Self

from wgvsock.errors import ConfigurationError

# Either family. `Address`, below, is an endpoint: a stream's or a datagram's.
IpAddress = IPv4Address | IPv6Address
IpInterface = IPv4Interface | IPv6Interface
IpNetwork = IPv4Network | IPv6Network

_MAX_U32: Final = 0xFFFFFFFF
_MAX_U16: Final = 0xFFFF


class Cid(int):
    """A context identifier: 32 bits (linux/vm_sockets.h, svm_cid).

    Raises:
        ConfigurationError: The number does not fit into 32 bits, or is negative.
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Check the range."""
        if not 0 <= value <= _MAX_U32:
            raise _out_of_range("CID", _MAX_U32)
        return super().__new__(cls, value)


class Port(int):
    """A port: 32 bits over vsock (svm_port), 16 bits in `TcpAddress` and `UdpAddress`.

    Raises:
        ConfigurationError: The number does not fit into 32 bits, or is negative.
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Check the range."""
        if not 0 <= value <= _MAX_U32:
            raise _out_of_range("port", _MAX_U32)
        return super().__new__(cls, value)


def _out_of_range(name: str, limit: int) -> ConfigurationError:
    return ConfigurationError(
        f"the {name} is out of range", why=f"a {name} is a number from 0 to {limit}", fix=f"correct the {name}"
    )


VMADDR_CID_HYPERVISOR: Final = Cid(0)
VMADDR_CID_LOCAL: Final = Cid(1)
VMADDR_CID_HOST: Final = Cid(2)
VMADDR_CID_ANY: Final = Cid(0xFFFFFFFF)
VMADDR_PORT_ANY: Final = Port(0xFFFFFFFF)

NITRO_PARENT_CID: Final = Cid(3)
"""The parent instance's CID as an enclave sees it (AWS Nitro Enclaves user guide). A QEMU host is `VMADDR_CID_HOST`."""

WIREGUARD_PORT: Final = Port(51820)
PROVISIONING_PORT: Final = Port(51821)
"""The WireGuard port plus 1, as in the paper."""

DNS_PORT: Final = Port(53)

_FIRST_ENCLAVE_CID: Final = 4
_LAST_CID: Final = 0xFFFFFFFE
_MAX_PATH: Final = 107  # sun_path holds 108 bytes, including the final NUL (unix(7))
_NAMED_CID: Final = re.compile(r"([a-z]+)\(([0-9]{1,10})\)")
_CID_NAMES: Final[dict[int, str]] = {
    VMADDR_CID_HYPERVISOR: "hypervisor",
    VMADDR_CID_LOCAL: "local",
    VMADDR_CID_HOST: "host",
}
_FORMS: Final = "vsock:CID:PORT, unix:PATH, hybrid:PATH:PORT, tcp:IP:PORT or udp:IP:PORT"


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """An AF_VSOCK stream address (vsock(7)). CID and port are unsigned 32-bit integers."""

    cid: Cid
    port: Port

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix stream socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class HybridVsockAddress:
    """A guest's vsock port behind a virtual machine monitor's Unix socket: ``CONNECT port`` first, then the stream."""

    path: str
    port: Port

    def __str__(self) -> str:
        return f"hybrid:{self.path}:{self.port}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address: a numeric IPv4 or IPv6 host and a 16-bit port."""

    host: str
    port: Port

    def __post_init__(self) -> None:
        if self.port > _MAX_U16:
            raise _out_of_range("port", _MAX_U16)

    def __str__(self) -> str:
        return f"tcp:{_host_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class UdpAddress:
    """A UDP address: a numeric IPv4 or IPv6 host and a 16-bit port."""

    host: str
    port: Port

    def __post_init__(self) -> None:
        if self.port > _MAX_U16:
            raise _out_of_range("port", _MAX_U16)

    def __str__(self) -> str:
        return f"udp:{_host_port(self.host, self.port)}"


StreamAddress = VsockAddress | UnixAddress | HybridVsockAddress | TcpAddress
Address = StreamAddress | UdpAddress


def is_dialable(cid: Cid) -> bool:
    """Whether a CID can be connected to: any but the hypervisor's and the listeners' wildcard."""
    return VMADDR_CID_HYPERVISOR < cid < VMADDR_CID_ANY


def enclave_cid(value: int) -> Cid:
    """The CID of an enclave, as a tool reports it: 4 to 2^32-2 (``nitro-cli run-enclave`` refuses 0 to 3).

    Raises:
        ConfigurationError: No enclave can have this CID.
    """
    if not _FIRST_ENCLAVE_CID <= value <= _LAST_CID:
        raise ConfigurationError(
            "no enclave can have this CID",
            why=f"an enclave's CID is a number from {_FIRST_ENCLAVE_CID} to {_LAST_CID}",
            fix="look up the CID with nitro-cli describe-enclaves",
        )
    return Cid(value)


def parse_address(text: str) -> Address:
    """Parse one of the forms listed in the module's docstring.

    Raises:
        ConfigurationError: The text has no such form, or a number is out of range.
    """
    scheme, separator, rest = text.partition(":")
    if not separator:
        raise _malformed(text, "it does not start with a kind of address")
    match scheme:
        case "vsock":
            cid, _, port = rest.partition(":")
            return VsockAddress(Cid(_number(cid, "CID", _MAX_U32, text)), Port(_number(port, "port", _MAX_U32, text)))
        case "unix":
            return UnixAddress(_path(rest, text))
        case "hybrid":
            path, _, port = rest.rpartition(":")
            return HybridVsockAddress(_path(path, text), Port(_number(port, "port", _MAX_U32, text)))
        case "tcp":
            return TcpAddress(*_ip_port(rest, text))
        case "udp":
            return UdpAddress(*_ip_port(rest, text))
        case _ if (named := _named_cid(scheme)) is not None:
            return VsockAddress(named, Port(_number(rest, "port", _MAX_U32, text)))
        case _:
            raise _malformed(text, "it starts with an unknown kind of address")


def parse_stream_address(text: str) -> StreamAddress:
    """Parse an address that carries a stream: any form but ``udp:``.

    Raises:
        ConfigurationError: As for `parse_address`, and for ``udp:``.
    """
    address = parse_address(text)
    if isinstance(address, UdpAddress):
        raise _malformed(text, "this address must carry a stream, and UDP carries datagrams")
    return address


def overlap(one: StreamAddress, other: StreamAddress) -> bool:
    """Whether a listener at one address takes connections meant for the other: the same address or a wildcard.

    A wildcard covers one family: ``tcp:0.0.0.0`` and ``tcp:[::]`` can listen on the same port.
    """
    match one, other:
        case VsockAddress(cid, port), VsockAddress(cid_2, port_2):
            return port == port_2 and (cid == cid_2 or VMADDR_CID_ANY in {cid, cid_2})
        case TcpAddress(host, port), TcpAddress(host_2, port_2):
            first, second = ipaddress.ip_address(host), ipaddress.ip_address(host_2)
            covered = first == second or first.is_unspecified or second.is_unspecified
            return port == port_2 != 0 and first.version == second.version and covered
        case _:
            return one == other


def vsock_to_ipv4(address: VsockAddress) -> str:
    """The endpoint in a form that stock ``wg`` accepts: CID 6, port 51820 is ``0.0.0.6:51820`` (big-endian CID)."""
    return f"{ipaddress.IPv4Address(address.cid)}:{address.port}"


def vsock_from_ipv4(text: str) -> VsockAddress:
    """Inverse of `vsock_to_ipv4`. A decimal CID (``16:51820``) and ``vm(16):51820`` are accepted as well.

    Raises:
        ConfigurationError: The host has none of these forms, or a number is out of range.
    """
    host, _, port = text.rpartition(":")
    try:
        cid = int(ipaddress.IPv4Address(host))
    except ValueError:
        named = _named_cid(host)
        cid = _number(host, "CID", _MAX_U32, text) if named is None else named
    return VsockAddress(Cid(cid), Port(_number(port, "port", _MAX_U32, text)))


def _named_cid(text: str) -> Cid | None:
    """The CID in ``hypervisor(0)``, ``local(1)``, ``host(2)`` or ``vm(N)`` with N >= 3, or None for any other text."""
    found = _NAMED_CID.fullmatch(text)
    cid = int(found[2]) if found else _MAX_U32 + 1
    if found is None or cid > _MAX_U32 or found[1] != _CID_NAMES.get(cid, "vm"):
        return None
    return Cid(cid)


def _host_port(host: str, port: Port) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ip_port(rest: str, text: str) -> tuple[str, Port]:
    host, _, port = rest.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        raise _malformed(text, "the host is not a numeric IP address") from None
    if (ip.version == 6) != (bare != host):
        raise _malformed(text, "an IPv6 host needs square brackets, and an IPv4 host takes none")
    return str(ip), Port(_number(port, "port", _MAX_U16, text))


def _number(digits: str, name: str, limit: int, text: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= limit):
        raise _malformed(text, f"the {name} is not a decimal number from 0 to {limit}")
    return int(digits)


def _path(path: str, text: str) -> str:
    if not path or "\0" in path or len(path.encode()) > _MAX_PATH:
        raise _malformed(text, f"a socket path has 1 to {_MAX_PATH} bytes and no NUL")
    return path


def _malformed(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read the address {text[:160]!r}", why=why, fix=f"write {_FORMS}")
