"""A Relay's machine: the operations that need no privilege. The behaviour suite tests the others."""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import ip_address

import pytest

from wgvsock.addresses import StreamAddress, TcpAddress
from wgvsock.machine.enclave import LinuxEnclaveMachine
from wgvsock.machine.relay import LinuxRelayMachine
from wgvsock.transports.errors import ConnectError, ListenError


def test_tools() -> None:
    machine = LinuxRelayMachine()
    assert machine.find_tool("wgvsock-no-such-tool") is None
    ran = asyncio.run(machine.run_tool([machine.find_tool("sh") or "sh", "-c", "cat"], "text"))
    assert (ran.status, ran.output) == (0, "text")


def test_what_blocks_has_a_thread_of_its_own() -> None:
    assert asyncio.run(LinuxRelayMachine().in_thread(threading.get_ident)) != threading.get_ident()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_answers_and_one_that_does_not(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert asyncio.run(LinuxRelayMachine().accepts(ip_address(host), port))
    assert not asyncio.run(LinuxRelayMachine().accepts(ip_address(host), port))


def test_everything_that_is_changed_can_be_taken_back() -> None:
    assert {"netfilter", "sysctl", "ipv4_forwarding"} <= LinuxRelayMachine().performers().keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_through_an_interface_and_no_other(host: str) -> None:
    """Loopback replaces the tunnel: a listener there receives what arrives through it, and what leaves arrives."""
    near_end, far_end = LinuxRelayMachine(), LinuxEnclaveMachine()

    async def body() -> None:
        accepted: asyncio.Future[tuple[socket.socket, StreamAddress]] = asyncio.get_running_loop().create_future()
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            port = taken.getsockname()[1]
        listening = far_end.listen_in_tunnel(
            "lo", ip_address(host), port, lambda sock, address: accepted.set_result((sock, address))
        )
        near = await near_end.connect_in_tunnel("lo", ip_address(host), port, seconds=60)
        far, address = await accepted
        assert isinstance(address, TcpAddress)
        assert address.host == host
        for sock in (near, far):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
            sock.close()
        listening.close()
        with pytest.raises(ConnectError):
            await near_end.connect_in_tunnel("no-such-if", ip_address(host), port, seconds=60)
        with pytest.raises(ListenError):
            far_end.listen_in_tunnel("no-such-if", ip_address(host), port, lambda *_: None)

    asyncio.run(body())
