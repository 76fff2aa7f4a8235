from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.addresses import (
    NITRO_PARENT_CID,
    PROVISIONING_PORT,
    WIREGUARD_PORT,
    Address,
    Cid,
    HybridVsockAddress,
    Port,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
    parse_stream_address,
    vsock_from_ipv4,
    vsock_to_ipv4,
)
from wgvsock.errors import ConfigurationError

U32 = st.integers(0, 2**32 - 1)
U16 = st.integers(0, 2**16 - 1)
PATHS = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=107)
HOSTS = st.ip_addresses().map(str)

ADDRESSES: st.SearchStrategy[Address] = st.one_of(
    st.builds(VsockAddress, U32.map(Cid), U32.map(Port)),
    st.builds(UnixAddress, PATHS),
    st.builds(HybridVsockAddress, PATHS, U32.map(Port)),
    st.builds(TcpAddress, HOSTS, U16.map(Port)),
    st.builds(UdpAddress, HOSTS, U16.map(Port)),
)


@given(ADDRESSES)
def test_parse_is_the_inverse_of_str(address: Address) -> None:
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock:16:51820", VsockAddress(Cid(16), WIREGUARD_PORT)),
        ("vsock:3:51821", VsockAddress(NITRO_PARENT_CID, PROVISIONING_PORT)),
        ("unix:/run/enclave.sock", UnixAddress("/run/enclave.sock")),
        ("hybrid:/run/v.sock:5000", HybridVsockAddress("/run/v.sock", Port(5000))),
        ("tcp:127.0.0.1:51820", TcpAddress("127.0.0.1", WIREGUARD_PORT)),
        ("udp:[::1]:1", UdpAddress("::1", Port(1))),
        ("udp:[0:0::1]:1", UdpAddress("::1", Port(1))),
        ("vm(6):51820", VsockAddress(Cid(6), WIREGUARD_PORT)),
        ("host(2):51820", VsockAddress(Cid(2), WIREGUARD_PORT)),
        ("local(1):1", VsockAddress(Cid(1), Port(1))),
        ("hypervisor(0):9000", VsockAddress(Cid(0), Port(9000))),
    ],
)
def test_known_forms(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no kind"),
        ("16", "names no kind"),
        ("pipe:/x", "kind is unknown"),
        ("vm(2):5", "kind is unknown"),  # CID 2 is the host
        ("host(3):5", "kind is unknown"),
        ("vm(4294967296):5", "kind is unknown"),
        ("vm(6)", "names no kind"),
        ("vm(6):", "port is no decimal"),
        ("vsock:16", "port is no decimal"),
        ("vsock:-1:5", "CID is no decimal"),
        ("vsock:4294967296:5", "CID is no decimal"),
        ("vsock:٣:5", "CID is no decimal"),
        ("vsock:00000000001:5", "CID is no decimal"),
        ("unix:", "socket's path"),
        ("unix:" + "a" * 108, "socket's path"),
        ("unix:/a\0b", "socket's path"),
        ("hybrid:/run/v.sock", "socket's path"),
        ("hybrid:/run/v.sock:", "port is no decimal"),
        ("tcp:localhost:80", "no numeric IP"),
        ("tcp:127.0.0.1:65536", "port is no decimal"),
        ("tcp:[127.0.0.1]:1", "square brackets"),
        ("udp:::1:1", "square brackets"),
    ],
)
def test_malformed_text_says_why(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert why in caught.value.why
    assert "vsock:CID:PORT" in caught.value.fix


@given(st.text(max_size=200))
def test_any_text_is_an_address_or_a_configuration_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigurationError:
        return
    assert parse_address(str(address)) == address


def test_stream_address_refuses_udp() -> None:
    assert parse_stream_address("tcp:127.0.0.1:1") == TcpAddress("127.0.0.1", Port(1))
    with pytest.raises(ConfigurationError, match="a stream is needed"):
        parse_stream_address("udp:127.0.0.1:1")


def test_wg_text_of_a_vsock_address() -> None:
    assert vsock_to_ipv4(VsockAddress(Cid(6), WIREGUARD_PORT)) == "0.0.0.6:51820"
    assert vsock_from_ipv4("16:51820") == VsockAddress(Cid(16), WIREGUARD_PORT)
    assert vsock_from_ipv4("vm(16):51820") == VsockAddress(Cid(16), WIREGUARD_PORT)
    with pytest.raises(ConfigurationError):
        vsock_from_ipv4("[::1]:51820")
    with pytest.raises(ConfigurationError):
        vsock_from_ipv4("51820")


@given(U32, U32)
def test_wg_text_round_trip(cid: int, port: int) -> None:
    address = VsockAddress(Cid(cid), Port(port))
    assert vsock_from_ipv4(vsock_to_ipv4(address)) == address
