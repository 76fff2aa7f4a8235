"""The engine as a process: it is started, reports, and ends with its relay."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from wgvsock.machine.relay import LinuxRelayMachine
from wgvsock.uplink import __main__ as program
from wgvsock.uplink import sandbox
from wgvsock.uplink.errors import EngineMissingError
from wgvsock.uplink.libslirp import load
from wgvsock.uplink.orders import Begin, Publish, decode_report

BEGIN = Begin((ip_address("10.73.0.2"),), (ip_address("10.73.0.1"),), 64)


def test_a_process_begins_in_its_sandbox_and_ends_with_whoever_started_it() -> None:
    try:
        load()
    except EngineMissingError as error:
        pytest.skip(f"{error}: {error.fix}")
    packets, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders, their_orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders.settimeout(60)

    async def whole() -> int:
        child = await LinuxRelayMachine().start_engine(theirs, their_orders)
        theirs.close()
        their_orders.close()
        orders.send(BEGIN.encode())
        report = decode_report(await asyncio.to_thread(orders.recv, 65_536))
        assert report.version
        assert report.sandbox == ()
        packets.close()
        async with asyncio.timeout(60):
            return await child.wait()

    with packets, orders:
        assert asyncio.run(whole()) == 0


def test_another_first_order_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sandbox, "die_with_parent", lambda: None)
    packets, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders, their_orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with packets, orders:
        orders.send(Publish().encode())
        assert program.main([str(theirs.detach()), str(their_orders.detach())]) == 1
    assert "not told to begin" in capsys.readouterr().err


def test_a_relay_that_is_gone_already_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def __init__(self, *_: object) -> None:
            raise ConnectionResetError

    monkeypatch.setattr(sandbox, "die_with_parent", lambda: None)
    monkeypatch.setattr(program, "Engine", Gone)
    ends = [sock.detach() for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    assert program.main([str(end) for end in ends]) == 0
