"""Where a stream or a datagram goes: one value type for each kind of endpoint, parsed from and formatted to text.

Text forms (``parse_address`` and ``str()`` are inverse):

* ``vsock:16:51820``            AF_VSOCK, context identifier (CID) 16, port 51820 (vsock(7)); ``vm(16):51820``,
  ``host(2):…``, ``local(1):…`` and ``hypervisor(0):…``, as Go programs print them, are read as well
* ``unix:/run/enclave.sock``    Unix stream socket
* ``hybrid:/run/v.sock:51820``  Unix stream socket of a virtual machine monitor that forwards ``CONNECT 51820`` to the
  guest's vsock port ("hybrid vsock": Firecracker, Cloud Hypervisor, vhost-device-vsock)
* ``tcp:127.0.0.1:51820``, ``tcp:[::1]:51820``, ``udp:…``
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NewType

from wgvsock.errors import ConfigurationError

Cid = NewType("Cid", int)
Port = NewType("Port", int)

VMADDR_CID_HYPERVISOR: Final = Cid(0)
VMADDR_CID_LOCAL: Final = Cid(1)
VMADDR_CID_HOST: Final = Cid(2)
VMADDR_CID_ANY: Final = Cid(0xFFFFFFFF)
VMADDR_PORT_ANY: Final = Port(0xFFFFFFFF)

NITRO_PARENT_CID: Final = Cid(3)
"""The parent instance's CID as an enclave sees it (AWS Nitro Enclaves user guide); a QEMU host is `VMADDR_CID_HOST`."""

WIREGUARD_PORT: Final = Port(51820)
PROVISIONING_PORT: Final = Port(51821)
"""WireGuard port + 1, as the paper has it."""

_MAX_U32: Final = 0xFFFFFFFF
_MAX_PATH: Final = 107  # sun_path holds 108 bytes with its final NUL (unix(7))
_NAMED_CID: Final = re.compile(r"([a-z]+)\(([0-9]{1,10})\)")
_CID_NAMES: Final[dict[int, str]] = {
    VMADDR_CID_HYPERVISOR: "hypervisor",
    VMADDR_CID_LOCAL: "local",
    VMADDR_CID_HOST: "host",
}
_FORMS: Final = "vsock:CID:PORT, unix:PATH, hybrid:PATH:PORT, tcp:IP:PORT or udp:IP:PORT"


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """An AF_VSOCK stream address (vsock(7)); CID and port are unsigned 32-bit integers."""

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
    """A TCP address; the host is a numeric IPv4 or IPv6 address."""

    host: str
    port: Port

    def __str__(self) -> str:
        return f"tcp:{_host_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class UdpAddress:
    """A UDP address; the host is a numeric IPv4 or IPv6 address."""

    host: str
    port: Port

    def __str__(self) -> str:
        return f"udp:{_host_port(self.host, self.port)}"


StreamAddress = VsockAddress | UnixAddress | HybridVsockAddress | TcpAddress
Address = StreamAddress | UdpAddress


def parse_address(text: str) -> Address:
    """Parse one of the forms in the module's docstring.

    Raises:
        ConfigurationError: The text is none of them, or a number is out of range.
    """
    scheme, separator, rest = text.partition(":")
    if not separator:
        raise _malformed(text, "it names no kind of address")
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
            raise _malformed(text, "its kind is unknown")


def parse_stream_address(text: str) -> StreamAddress:
    """Parse an address that carries a stream, that is any but ``udp:``.

    Raises:
        ConfigurationError: As `parse_address`, and for ``udp:``.
    """
    address = parse_address(text)
    if isinstance(address, UdpAddress):
        raise _malformed(text, "a stream is needed here, and UDP carries none")
    return address


def vsock_to_ipv4(address: VsockAddress) -> str:
    """Text that stock ``wg`` accepts as an endpoint: CID 6, port 51820 is ``0.0.0.6:51820`` (big-endian CID)."""
    return f"{ipaddress.IPv4Address(address.cid)}:{address.port}"


def vsock_from_ipv4(text: str) -> VsockAddress:
    """Inverse of `vsock_to_ipv4`; a decimal CID (``16:51820``) and ``vm(16):51820`` are accepted as well.

    Raises:
        ConfigurationError: The host is none of the three, or a number is out of range.
    """
    host, _, port = text.rpartition(":")
    try:
        cid = int(ipaddress.IPv4Address(host))
    except ValueError:
        named = _named_cid(host)
        cid = _number(host, "CID", _MAX_U32, text) if named is None else named
    return VsockAddress(Cid(cid), Port(_number(port, "port", _MAX_U32, text)))


def _named_cid(text: str) -> Cid | None:
    """CID of ``hypervisor(0)``, ``local(1)``, ``host(2)`` or ``vm(N)`` with N of 3 and more; None for anything else."""
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
        raise _malformed(text, "the host is no numeric IP address") from None
    if (ip.version == 6) != (bare != host):
        raise _malformed(text, "an IPv6 host, and no other, stands in square brackets")
    return str(ip), Port(_number(port, "port", 0xFFFF, text))


def _number(digits: str, name: str, limit: int, text: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= limit):
        raise _malformed(text, f"the {name} is no decimal number from 0 to {limit}")
    return int(digits)


def _path(path: str, text: str) -> str:
    if not path or "\0" in path or len(path.encode()) > _MAX_PATH:
        raise _malformed(text, f"a socket's path is 1 to {_MAX_PATH} bytes, without NUL")
    return path


def _malformed(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read the address {text[:160]!r}", why=why, fix=f"write {_FORMS}")
