from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.addresses import (
    VMADDR_CID_ANY,
    Address,
    Cid,
    HybridVsockAddress,
    Port,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    VsockAddress,
)
from wgvsock.errors import ConfigurationError, LocalProtocolError
from wgvsock.uapi.endpoints import Carrier, EndpointText

VSOCK = EndpointText(Carrier.VSOCK)
UNIX = EndpointText(Carrier.UNIX)
TCP = EndpointText(Carrier.TCP)
UDP = EndpointText(Carrier.UDP)

U16 = st.integers(0, 0xFFFF).map(Port)
HOSTS = st.ip_addresses().map(str).filter(lambda host: not host.startswith("::ffff:"))  # those are read as IPv4


def parses_in_wg(text: str) -> bool:
    """What ``wg`` does with an endpoint: getaddrinfo() with AI_NUMERICHOST on the two halves."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") else host
    ipaddress.ip_address(bare)
    return 0 <= int(port) <= 0xFFFF


@pytest.mark.parametrize(
    ("text", "cid", "port"),
    [("0.0.0.6:51820", 6, 51820), ("16:51820", 16, 51820), ("vm(6):1", 6, 1), ("host(2):8172", 2, 8172)],
)
def test_a_vsock_endpoint_as_wg_or_the_operator_writes_it(text: str, cid: int, port: int) -> None:
    assert VSOCK.parse(text) == VsockAddress(Cid(cid), Port(port))


@given(st.builds(VsockAddress, st.integers(0, 2**32 - 1).map(Cid), U16))
def test_vsock_round_trip(address: VsockAddress) -> None:
    assert parses_in_wg(VSOCK.format(address))
    assert VSOCK.parse(VSOCK.format(address)) == address


@given(U16)
def test_unix_round_trip(port: Port) -> None:
    address = UnixAddress(f"/run/wgvsock/{port}.sock")
    assert parses_in_wg(UNIX.format(address))
    assert UNIX.parse(UNIX.format(address)) == address


@given(st.builds(TcpAddress, HOSTS, U16))
def test_tcp_round_trip(address: TcpAddress) -> None:
    assert parses_in_wg(TCP.format(address))
    assert TCP.parse(TCP.format(address)) == address


@given(st.builds(UdpAddress, HOSTS, U16))
def test_udp_round_trip(address: UdpAddress) -> None:
    assert parses_in_wg(UDP.format(address))
    assert UDP.parse(UDP.format(address)) == address


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (UnixAddress("/run/enclave.sock"), "127.0.0.1:0"),
        (UnixAddress("/run/wgvsock/relay.sock"), "127.0.0.1:0"),
        (UnixAddress("/run/wgvsock/99999.sock"), "127.0.0.1:0"),
        (UnixAddress("/srv/51820.sock"), "127.0.0.1:0"),
        (HybridVsockAddress("/run/v.sock", Port(51820)), "127.0.0.1:51820"),
        (UdpAddress("fe80::1%3", Port(1)), "[fe80::1%3]:1"),
        (UdpAddress("fe80::1%eth0", Port(1)), "[fe80::1]:1"),
    ],
)
def test_every_address_has_a_text_that_wg_survives(address: Address, text: str) -> None:
    assert UNIX.format(address) == text
    assert parses_in_wg(text)


def test_an_ipv4_address_in_ipv6_clothes_is_taken_as_ipv4() -> None:
    assert UDP.parse("[::ffff:192.0.2.1]:9") == UdpAddress("192.0.2.1", Port(9))
    assert TCP.parse("[::ffff:192.0.2.1]:9") == TcpAddress("192.0.2.1", Port(9))


@pytest.mark.parametrize("endpoints", [VSOCK, UNIX, TCP, UDP], ids=lambda endpoints: endpoints.carrier)
@pytest.mark.parametrize(
    "text", ["", "51820", "1.2.3.4", "1.2.3.4:", "example.com:80", "1.2.3.4:99999", "vm(x):1", ":1"]
)
def test_anything_else_is_a_configuration_error(endpoints: EndpointText, text: str) -> None:
    with pytest.raises(ConfigurationError):
        endpoints.parse(text)


def test_a_port_that_wg_would_truncate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="wg knows only 16-bit ports, and would show port 4"):
        VSOCK.parse("6:65540")


def test_listen_addresses() -> None:
    assert VSOCK.listen_addresses(51820) == (VsockAddress(VMADDR_CID_ANY, Port(51820)),)
    assert UNIX.listen_addresses(51820) == (UnixAddress("/run/wgvsock/51820.sock"),)
    assert EndpointText(Carrier.UNIX, "/srv/x").listen_addresses(1) == (UnixAddress("/srv/x/1.sock"),)
    assert TCP.listen_addresses(1) == tuple(TcpAddress(host, Port(1)) for host in ("0.0.0.0", "::"))  # noqa: S104  # as every WireGuard does


@pytest.mark.parametrize("endpoints", [VSOCK, UNIX, TCP], ids=lambda endpoints: endpoints.carrier)
def test_port_zero_listens_nowhere(endpoints: EndpointText) -> None:
    assert endpoints.listen_addresses(0) == ()


def test_udp_listens_by_itself() -> None:
    with pytest.raises(LocalProtocolError):
        UDP.listen_addresses(1)
