"""The real machine's operations that need no privilege. The behaviour suite tests the others."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from wgvsock.addresses import StreamAddress, TcpAddress
from wgvsock.devices.nsm import NsmError
from wgvsock.machine.linux import LinuxMachine
from wgvsock.transports.errors import ConnectError, ListenError


def test_clocks_and_entropy() -> None:
    machine = LinuxMachine()
    assert machine.monotonic() <= time.monotonic() <= machine.monotonic() + 60
    assert abs(machine.wall_clock() - time.time_ns()) < 60 * 10**9
    assert len({machine.random(16) for _ in range(3)}) == 3


def test_tools() -> None:
    machine = LinuxMachine()
    assert machine.find_tool("wgvsock-no-such-tool") is None
    ran = asyncio.run(machine.run_tool([machine.find_tool("sh") or "sh", "-c", "cat"], "text"))
    assert (ran.status, ran.output) == (0, "text")


def test_what_blocks_has_a_thread_of_its_own() -> None:
    assert asyncio.run(LinuxMachine().in_thread(threading.get_ident)) != threading.get_ident()


def test_a_security_module_that_hangs_is_waited_for_no_longer_than_asked() -> None:
    machine = LinuxMachine()
    assert asyncio.run(machine.ask_module(threading.get_ident, timeout=60)) != threading.get_ident()
    hung = threading.Event()
    with pytest.raises(NsmError, match="did not answer"):
        asyncio.run(machine.ask_module(hung.wait, timeout=0))
    hung.set()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_answers_and_one_that_does_not(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert asyncio.run(LinuxMachine().accepts(ip_address(host), port))
    assert not asyncio.run(LinuxMachine().accepts(ip_address(host), port))


def test_everything_that_is_changed_can_be_taken_back() -> None:
    assert {"netfilter", "sysctl", "ipv4_forwarding"} <= LinuxMachine().performers().keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_through_an_interface_and_no_other(host: str) -> None:
    """Loopback replaces the tunnel: a listener there receives what arrives through it, and what leaves arrives."""
    machine = LinuxMachine()

    async def body() -> None:
        accepted: asyncio.Future[tuple[socket.socket, StreamAddress]] = asyncio.get_running_loop().create_future()
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            port = taken.getsockname()[1]
        listening = machine.listen_in_tunnel(
            "lo", ip_address(host), port, lambda sock, address: accepted.set_result((sock, address))
        )
        near = await machine.connect_in_tunnel("lo", ip_address(host), port, seconds=60)
        far, address = await accepted
        assert isinstance(address, TcpAddress)
        assert address.host == host
        for sock in (near, far):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
            sock.close()
        listening.close()
        with pytest.raises(ConnectError):
            await machine.connect_in_tunnel("no-such-if", ip_address(host), port, seconds=60)
        with pytest.raises(ListenError):
            machine.listen_in_tunnel("no-such-if", ip_address(host), port, lambda *_: None)

    asyncio.run(body())


def test_wg_finds_the_interface_where_it_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wgvsock.machine.linux.socket_path", lambda name: tmp_path / f"{name}.sock")
    place = LinuxMachine().listen_for_wg("wg0")
    assert place is not None
    listener, path = place
    with listener:
        assert path.is_socket()
        assert LinuxMachine().listen_for_wg("wg0") is None  # another one has it, which breaks nothing
