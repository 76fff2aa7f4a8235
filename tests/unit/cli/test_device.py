"""`wgvsock device` in this process, with a TUN in memory. tests/e2e/test_wg_device.py runs the real one."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from wgvsock.cli import device
from wgvsock.cli.device import DeviceOptions, add_arguments, main, read_options, run_device
from wgvsock.devices.errors import TunForbiddenError
from wgvsock.errors import ConfigurationError
from wgvsock.framing import Framing
from wgvsock.runtime import process
from wgvsock.system.routes import watch_routes
from wgvsock.testing.tun import MemoryTun
from wgvsock.transports.stream import StreamTransport
from wgvsock.transports.udp import UdpTransport
from wgvsock.uapi import server
from wgvsock.uapi.endpoints import Carrier, EndpointText
from wgvsock.uapi.errors import ControlSocketError
from wgvsock.uapi.server import open_control_socket
from wgvsock.wireguard import (
    Device,
    Dropped,
    DropReason,
    EndpointChanged,
    HandshakeCompleted,
    HandshakeFailed,
    Peer,
    generate_private_key,
    public_key,
)


def options(*arguments: str, environment: Mapping[str, str] | None = None) -> DeviceOptions:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_options(parser.parse_args(arguments), environment or {})


def test_defaults_are_those_of_the_paper_s_program() -> None:
    assert options("wg0") == DeviceOptions("wg0", Carrier.VSOCK, Framing.COMPAT, foreground=False)


@pytest.mark.parametrize("carrier", [*Carrier])
def test_options(carrier: Carrier) -> None:
    chosen = options("-f", "-n", carrier, "--framing", "native", "wg0")
    assert chosen == DeviceOptions("wg0", carrier, Framing.NATIVE, foreground=True)


def test_environment() -> None:
    environment = {
        "WG_TUN_FD": "7",
        "WG_UAPI_FD": "8",
        "WG_PROCESS_FOREGROUND": "1",
        "LOG_LEVEL": "verbose",
        "WGVSOCK_NETWORK": "udp",
        "WGVSOCK_FRAMING": "native",
    }
    assert options("wg0", environment=environment) == DeviceOptions(
        "wg0", Carrier.UDP, Framing.NATIVE, foreground=True, tun_fd=7, uapi_fd=8, log_level="verbose"
    )
    assert options("-n", "tcp", "--framing", "compat", "wg0", environment=environment).carrier is Carrier.TCP


def test_an_option_goes_before_the_environment() -> None:
    environment = {"WGVSOCK_NETWORK": "udp", "WGVSOCK_FRAMING": "native"}
    chosen = options("-n", "tcp", "--framing", "compat", "wg0", environment=environment)
    assert (chosen.carrier, chosen.framing) == (Carrier.TCP, Framing.COMPAT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WGVSOCK_NETWORK", "pigeon"),
        ("WGVSOCK_FRAMING", "loose"),
        ("WG_TUN_FD", "x"),
        ("WG_TUN_FD", "-1"),
        ("WG_UAPI_FD", "9" * 20),
    ],
)
def test_a_variable_that_means_nothing_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        options("wg0", environment={name: value})


def test_log_level_belongs_to_others_too() -> None:
    assert options("wg0", environment={"LOG_LEVEL": "notice"}).log_level == "notice"


@dataclass(frozen=True)
class Machine:
    """What the device finds."""

    path: Path
    """Of the control socket."""
    opened: threading.Event
    """Set when a connection to it is possible."""

    def operate(self, work: Callable[[], None]) -> threading.Thread:
        """Do something on a thread, as soon as the device exists."""

        def run() -> None:
            assert self.opened.wait(10)
            work()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def ask(self, request: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(4096), b""))

    def ask_and_end(self, *requests: bytes) -> tuple[threading.Thread, list[bytes]]:
        """Ask it, then remove the socket, which ends the device."""
        answers: list[bytes] = []

        def work() -> None:
            answers.extend(self.ask(request) for request in requests)
            self.path.unlink()

        return self.operate(work), answers


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Everything that belongs to the machine is replaced by the test."""
    found = Machine(tmp_path / "memory0.sock", threading.Event())
    tuns: list[MemoryTun] = []

    def open_tun(name: str) -> MemoryTun:
        assert name == "wg0"
        tuns.append(MemoryTun())
        return tuns[-1]

    monkeypatch.setattr(MemoryTun, "set_mtu", lambda _, mtu: None, raising=False)
    monkeypatch.setattr(device, "open_tun", open_tun)
    monkeypatch.setattr(device, "socket_path", {"memory0": found.path}.__getitem__)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(device, "configure", lambda _level: found.opened.set())
    monkeypatch.setattr(server, "WATCH_INTERVAL", 0.01)
    yield found
    for tun in tuns:
        tun.close()


@pytest.mark.parametrize("carrier", [*Carrier])
def test_it_serves_until_its_socket_is_removed(
    machine: Machine, carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    if carrier is Carrier.UDP:
        monkeypatch.setattr(device, "UdpTransport", StreamTransportWithSockets)
    thread, answers = machine.ask_and_end(b"set=1\nfwmark=5\n\n", b"get=1\n\n")
    assert run_device(DeviceOptions("wg0", carrier, foreground=True)) == 0
    thread.join()
    assert answers == [b"errno=0\n\n", b"fwmark=5\nerrno=0\n\n"]
    assert not machine.path.exists()


class StreamTransportWithSockets(StreamTransport):
    """Instead of UDP: unit tests open no network sockets."""

    listen_port = 0
    fwmark = 0

    def __init__(self, *, watch_routes: object) -> None:
        super().__init__()

    def set_fwmark(self, mark: int) -> None:
        self.fwmark = mark


def test_udp_is_a_transport_with_sockets_of_its_own() -> None:
    transport, sockets = device._make_transport(DeviceOptions("wg0", Carrier.UDP), EndpointText(Carrier.UDP))
    assert isinstance(transport, UdpTransport)
    assert sockets is transport
    assert transport._watch_routes is watch_routes, "it notices that routes change"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_by_a_signal_and_leaves_nothing(machine: Machine, number: signal.Signals) -> None:
    def interrupt() -> None:
        machine.ask(b"get=1\n\n")  # the answer comes from a loop that handles signals
        os.kill(os.getpid(), number)

    thread = machine.operate(interrupt)
    assert run_device(DeviceOptions("wg0", Carrier.TCP, foreground=True)) == 0
    thread.join()
    assert not machine.path.exists()


def test_it_ends_when_the_interface_is_removed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    tun = MemoryTun()
    monkeypatch.setattr(device, "open_tun", lambda _: tun)
    thread = machine.operate(tun.remove)
    assert run_device(DeviceOptions("wg0", Carrier.TCP, foreground=True)) == 0
    thread.join()
    tun.close()
    assert not machine.path.exists()


def test_inherited_descriptors_are_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    tun, listener = MemoryTun(), open_control_socket(machine.path)
    monkeypatch.setattr(device, "adopt_tun", {7: tun}.__getitem__)
    thread, answers = machine.ask_and_end(b"get=1\n\n")
    chosen = DeviceOptions("wg0", Carrier.TCP, foreground=True, tun_fd=7, uapi_fd=listener.detach())
    assert run_device(chosen) == 0
    thread.join()
    assert answers == [b"errno=0\n\n"]


def test_a_descriptor_that_is_no_socket_is_an_error(machine: Machine, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(ControlSocketError, match=f"descriptor {file.fileno()}"):
        run_device(DeviceOptions("wg0", foreground=True, uapi_fd=file.fileno()))


class Forked(BaseException):
    """Raised instead of ending a process."""


@pytest.mark.parametrize(("log_level", "silenced"), [("", [0, 1, 2]), ("silent", [0, 1, 2]), ("debug", [0])])
def test_the_child_goes_on_without_a_terminal(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, log_level: str, silenced: list[int]
) -> None:
    done: list[object] = []
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "setsid", lambda: done.append("setsid"))
    monkeypatch.setattr(os, "chdir", done.append)
    monkeypatch.setattr(os, "dup2", lambda _, descriptor: done.append(descriptor))
    thread, _ = machine.ask_and_end()
    assert run_device(DeviceOptions("wg0", Carrier.TCP, log_level=log_level)) == 0
    thread.join()
    assert done == ["setsid", "/", *silenced]


def test_the_parent_ends_at_once_and_takes_nothing_away(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        assert code == 0
        assert machine.path.exists()
        raise Forked

    monkeypatch.setattr(os, "fork", lambda: 4711)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Forked):
        run_device(DeviceOptions("wg0", Carrier.TCP))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_ends_the_parent_ends_the_device(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    told: list[tuple[int, int]] = []

    def end(_: int) -> None:
        raise Forked

    monkeypatch.setattr(os, "fork", lambda: 4711)
    monkeypatch.setattr(os, "kill", lambda *arguments: told.append(arguments))
    monkeypatch.setattr(os, "_exit", end)
    process.hold_signals()
    signal.raise_signal(number)
    with pytest.raises(Forked):
        run_device(DeviceOptions("wg0", Carrier.TCP))
    assert told == [(4711, number)]


def test_other_signals_pass_over_as_in_wireguard_go(machine: Machine) -> None:
    def act() -> None:
        machine.ask(b"get=1\n\n")
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        machine.ask(b"get=1\n\n")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = machine.operate(act)
    assert run_device(DeviceOptions("wg0", Carrier.TCP, foreground=True)) == 0
    thread.join()


def test_main_turns_errors_into_three_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: DeviceOptions) -> int:
        raise TunForbiddenError("cannot create the interface wg0", why="Device or resource busy", fix="choose another")

    monkeypatch.setattr(device, "run_device", refuse)
    assert main(["-f", "wg0"]) == 7
    assert capsys.readouterr().err.splitlines() == [
        "error[WGV-E071]: cannot create the interface wg0",
        "why: Device or resource busy",
        "fix: choose another",
    ]


def test_the_subcommand_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "run_device", lambda chosen: len(chosen.interface))
    parser = argparse.ArgumentParser()
    device.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["device", "-f", "wg0"])
    assert arguments.run(arguments) == 3
    assert main(["-f", "wg0"]) == 3


def test_events_are_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    core = Device(random=lambda size: b"\1" * size, wall_clock=lambda: 0)
    peer: Peer = core.add_peer(public_key(generate_private_key(lambda size: b"\2" * size)), now=0.0)
    with caplog.at_level(logging.DEBUG, logger=device.__name__):
        for event in (
            HandshakeCompleted(peer, initiator=True, duration=0.1),
            HandshakeFailed(peer, 18),
            EndpointChanged(peer, None, "there"),
            Dropped(next(iter(DropReason)), None, None),
        ):
            device._log_event(event)
    assert [record.message for record in caplog.records] == [
        "handshake completed",
        "no answer to handshake initiations",
        "the endpoint changed",
    ]
