"""A port follows the tunnel's addresses: kept ones are untouched, others are closed, refusals are reported."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from wgvsock.addresses import StreamAddress
from wgvsock.enclave.tunnel_port import TunnelPort
from wgvsock.testing.machine import MemoryMachine
from wgvsock.transports.errors import ListenError

ONE, OTHER = ip_address("10.73.0.2"), ip_address("fd73::2")


def taken(_sock: socket.socket, _address: StreamAddress) -> None:
    pytest.fail("nobody connects here")


def test_it_follows_the_addresses() -> None:
    machine = MemoryMachine()
    subject = TunnelPort(machine, "wg0", 8443, taken, "things")
    subject.listen([ONE])
    first = machine.in_tunnel[ONE, 8443]
    subject.listen([ONE, OTHER])
    assert set(machine.in_tunnel) == {(ONE, 8443), (OTHER, 8443)}
    assert machine.in_tunnel[ONE, 8443] is first
    subject.listen([OTHER])
    assert set(machine.in_tunnel) == {(OTHER, 8443)}
    for _ in range(2):
        subject.close()
        assert not machine.in_tunnel


def test_port_0_is_none() -> None:
    machine = MemoryMachine()
    TunnelPort(machine, "wg0", 0, taken, "things").listen([ONE])
    assert not machine.in_tunnel


def test_an_address_that_cannot_be_bound_is_told_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ListenError("cannot listen", why="the test says so", fix="change the test")

    machine = MemoryMachine()
    subject = TunnelPort(machine, "wg0", 8443, taken, "things")
    with monkeypatch.context() as refusing:
        refusing.setattr(MemoryMachine, "listen_in_tunnel", refuse)
        subject.listen([ONE])
    assert "cannot serve things" in caplog.text
    subject.listen([ONE])
    assert set(machine.in_tunnel) == {(ONE, 8443)}
