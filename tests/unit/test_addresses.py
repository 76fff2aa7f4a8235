from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.addresses import (
    NITRO_PARENT_CID,
    PROVISIONING_PORT,
    VMADDR_CID_ANY,
    VMADDR_CID_HOST,
    VMADDR_CID_HYPERVISOR,
    VMADDR_CID_LOCAL,
    WIREGUARD_PORT,
    Address,
    Cid,
    HybridVsockAddress,
    Port,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    VsockAddress,
    enclave_cid,
    is_dialable,
    overlap,
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


@pytest.mark.parametrize("number", [-1, -5, 2**32, 2**32 + 3, 2**70])
@pytest.mark.parametrize("kind", [Cid, Port])
def test_a_number_that_a_socket_would_cut_cannot_be_made(kind: type[Cid | Port], number: int) -> None:
    with pytest.raises(ConfigurationError, match="a number from 0 to 4294967295"):
        kind(number)


@pytest.mark.parametrize("kind", [TcpAddress, UdpAddress])
def test_an_ip_port_has_16_bits(kind: type[TcpAddress | UdpAddress]) -> None:
    assert str(kind("::1", Port(65535))).endswith("[::1]:65535")
    with pytest.raises(ConfigurationError, match="a number from 0 to 65535"):
        kind("::1", Port(65536))


@given(U32)
def test_numbers_stay_numbers(number: int) -> None:
    assert (Cid(number), str(Cid(number)), f"{Port(number):d}") == (number, str(number), str(number))
    assert {Cid(number): "same"}[number] == "same"  # type: ignore[index]


def test_who_is_dialled() -> None:
    assert [is_dialable(cid) for cid in (VMADDR_CID_HYPERVISOR, VMADDR_CID_ANY)] == [False, False]
    dialled = (VMADDR_CID_LOCAL, VMADDR_CID_HOST, NITRO_PARENT_CID, Cid(4), Cid(2**32 - 2))
    assert all(is_dialable(cid) for cid in dialled)


@pytest.mark.parametrize("number", [4, 16, 2**32 - 2])
def test_what_an_enclave_s_cid_can_be(number: int) -> None:
    assert enclave_cid(number) == number


@pytest.mark.parametrize("number", [-5, 0, 1, 2, 3, 2**32 - 1, 2**32 + 16, 2**70])
def test_what_an_enclave_s_cid_cannot_be(number: int) -> None:
    with pytest.raises(ConfigurationError, match="from 4 to 4294967294"):
        enclave_cid(number)


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
        ("", "start with a kind"),
        ("16", "start with a kind"),
        ("pipe:/x", "unknown kind"),
        ("vm(2):5", "unknown kind"),  # CID 2 is the host
        ("host(3):5", "unknown kind"),
        ("vm(4294967296):5", "unknown kind"),
        ("vm(6)", "start with a kind"),
        ("vm(6):", "port is not a decimal"),
        ("vsock:16", "port is not a decimal"),
        ("vsock:-1:5", "CID is not a decimal"),
        ("vsock:4294967296:5", "CID is not a decimal"),
        ("vsock:٣:5", "CID is not a decimal"),
        ("vsock:00000000001:5", "CID is not a decimal"),
        ("unix:", "socket path"),
        ("unix:" + "a" * 108, "socket path"),
        ("unix:/a\0b", "socket path"),
        ("hybrid:/run/v.sock", "socket path"),
        ("hybrid:/run/v.sock:", "port is not a decimal"),
        ("tcp:localhost:80", "not a numeric IP"),
        ("tcp:127.0.0.1:65536", "port is not a decimal"),
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
    with pytest.raises(ConfigurationError, match="must carry a stream"):
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


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("vsock:16:1", "vsock:16:1", True),
        ("vsock:16:1", "vsock:16:2", False),
        ("vsock:16:1", "vsock:17:1", False),
        ("vsock:4294967295:1", "vsock:17:1", True),
        ("tcp:10.0.0.1:80", "tcp:10.0.0.1:80", True),
        ("tcp:10.0.0.1:80", "tcp:10.0.0.2:80", False),
        ("tcp:0.0.0.0:80", "tcp:10.0.0.2:80", True),
        ("tcp:0.0.0.0:80", "tcp:10.0.0.2:81", False),
        ("tcp:0.0.0.0:80", "tcp:[::]:80", False),  # ours is for one family alone
        ("tcp:[::]:80", "tcp:[fd00::1]:80", True),
        ("tcp:0.0.0.0:0", "tcp:0.0.0.0:0", False),  # each is given another one
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("hybrid:/a:1", "hybrid:/a:1", True),
        ("vsock:16:1", "tcp:10.0.0.1:1", False),
    ],
)
def test_overlap(one: str, other: str, is_one: bool) -> None:
    first, second = parse_stream_address(one), parse_stream_address(other)
    assert overlap(first, second) is overlap(second, first) is is_one
