from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address

import pytest

from wgvsock.addresses import IpAddress
from wgvsock.dns import sockets
from wgvsock.dns.sockets import DnsSockets, KernelDnsSockets, LoopbackDnsSockets
from wgvsock.testing.dns import MemoryDnsSockets
from wgvsock.transports.errors import ListenError


@pytest.fixture(params=["127.0.0.1", "::1"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of loopback, and instead of port 53 an unused one."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as free:
        free.bind((request.param, 0))
        monkeypatch.setattr(sockets, "DNS_PORT", free.getsockname()[1])
    return str(request.param)


def test_a_query_and_a_connection_arrive(address: str) -> None:
    datagrams, streams = KernelDnsSockets().listen(ip_address(address), "lo")
    with datagrams, streams, KernelDnsSockets().to_server(ip_address(address)) as client:
        client.send(b"q")
        data, sender = datagrams.recvfrom(10)
        assert data == b"q"
        assert sender[:2] == client.getsockname()[:2]
        datagrams.sendto(b"a", sender)
        assert client.recv(10) == b"a"

        async def connect() -> None:
            loop = asyncio.get_running_loop()
            sock = await KernelDnsSockets().stream_to_server(ip_address(address), deadline=loop.time() + 60)
            sock.close()

        asyncio.run(connect())
        accepted, _ = streams.accept()
        accepted.close()


def test_what_is_bound_belongs_to_one_interface(address: str) -> None:
    datagrams, streams = KernelDnsSockets().listen(ip_address(address), "lo")
    with datagrams, streams:
        for sock in (datagrams, streams):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
            assert not sock.getblocking()


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"], indirect=False)
def test_an_address_need_not_be_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "DNS_PORT", 0)
    for sock in KernelDnsSockets().listen(ip_address(address), "lo"):
        sock.close()


def test_a_port_in_use_is_an_error_that_says_what_to_do(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as other:
        other.bind((address, vars(sockets)["DNS_PORT"]))
        other.listen()
        with pytest.raises(ListenError) as caught:
            KernelDnsSockets().listen(ip_address(address), "lo")
    assert address in caught.value.what
    assert "sport" in caught.value.fix


def test_a_port_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sockets, "_bind", refuse)
    with pytest.raises(ListenError, match="Permission denied") as caught:
        KernelDnsSockets().listen(ip_address("127.0.0.1"), "lo")
    assert "CAP_NET_BIND_SERVICE" in caught.value.fix


def test_no_such_interface() -> None:
    with pytest.raises(ListenError):
        KernelDnsSockets().listen(ip_address("127.0.0.1"), "nothing0")


def test_a_server_that_no_way_leads_to() -> None:
    with pytest.raises(OSError, match="denied"):
        KernelDnsSockets().to_server(ip_address("255.255.255.255"))  # broadcast, which a socket has to ask for


def test_both_kinds_satisfy_the_protocol() -> None:
    kinds: list[DnsSockets] = [KernelDnsSockets(), MemoryDnsSockets()]  # which mypy looks at
    assert len(kinds) == 2


@pytest.mark.parametrize("gateway", ["10.73.0.1", "fd73::1"])
def test_questions_through_user_space_arrive_at_loopback_on_one_port(gateway: str) -> None:
    made = LoopbackDnsSockets()
    datagrams, streams = made.listen(ip_address(gateway), "userspace")
    with datagrams, streams:
        host = "127.0.0.1" if "." in gateway else "::1"
        assert datagrams.getsockname()[:2] == streams.getsockname()[:2] == (host, made.port)
        assert not datagrams.getblocking()
        with pytest.raises(ListenError, match=f"port {made.port}"):
            made.listen(ip_address(gateway), "userspace")
    again = made.listen(ip_address(gateway), "userspace")
    for sock in again:
        assert sock.getsockname()[1] == made.port, "the engine was told once"
        sock.close()


def test_a_machine_without_ipv6_answers_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_sock: socket.socket, address: IpAddress, port: int) -> None:
        if address.version == 6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        assert port == 0

    monkeypatch.setattr(sockets, "_listen_at", bind)
    for sock in LoopbackDnsSockets().listen(ip_address("fd73::1"), "userspace"):
        assert sock.family == socket.AF_INET
        sock.close()
