"""``wgvsock device``, installed as ``wgvsock-device`` too: a userspace WireGuard that ``wg`` and ``wg-quick`` control.

It starts, goes into the background and ends as wireguard-go does: the parent returns once interface and control socket
are there; SIGINT, SIGTERM, the removal of the interface and that of the socket all end it.

Environment, with wireguard-go's meanings: ``WG_TUN_FD`` and ``WG_UAPI_FD`` name open descriptors to use in place of new
ones, ``WG_PROCESS_FOREGROUND=1`` is ``--foreground``, ``LOG_LEVEL`` is verbose, debug, info, error or silent.
``WGVSOCK_NETWORK`` and ``WGVSOCK_FRAMING`` are the defaults of the options: wg-quick passes none.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wgvsock import __version__
from wgvsock.cli.ending import run_command
from wgvsock.devices.tun import Tun, adopt_tun, open_tun
from wgvsock.errors import ConfigurationError, SystemSetupError
from wgvsock.framing import Framing
from wgvsock.system import event_loop, memory
from wgvsock.telemetry.logs import configure, fields
from wgvsock.transports.base import Transport
from wgvsock.transports.stream import StreamTransport
from wgvsock.transports.udp import UdpTransport
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.uapi.control import DeviceControl, Sockets
from wgvsock.uapi.endpoints import Carrier, EndpointText
from wgvsock.uapi.errors import ControlSocketError
from wgvsock.uapi.server import UapiServer, open_control_socket, socket_path
from wgvsock.uapi.sockets import StreamSockets
from wgvsock.wireguard import Device, EndpointChanged, Event, HandshakeCompleted, HandshakeFailed, Timings

DEFAULT_MTU: Final = 1420
"""Bytes; every WireGuard's: an uplink of 1500 less IPv6, UDP and WireGuard headers."""

_LEVELS: Final = {"verbose": "debug", "debug": "debug", "info": "info", "error": "error", "silent": "critical"}

_DEFAULT_TIMINGS: Final = Timings()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Everything that command line and environment say.

    Attributes:
        interface: Name of the interface to make.
        carrier: What carries the datagrams.
        framing: How they are framed on a stream; `compat` is what the paper's program speaks.
        foreground: Stay in the foreground.
        tun_fd: An open TUN to use; None: make one.
        uapi_fd: A listening control socket to use; None: make one.
        log_level: One of LOG_LEVEL's words; any other: warnings. Empty: and nothing from the background.
    """

    interface: str
    carrier: Carrier = Carrier.VSOCK
    framing: Framing = Framing.COMPAT
    foreground: bool = False
    tun_fd: int | None = None
    uapi_fd: int | None = None
    log_level: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wgvsock-device``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="wgvsock-device", description="Userspace WireGuard over vsock, Unix and TCP streams, and UDP."
    )
    parser.add_argument("--version", action="version", version=f"wgvsock-device {__version__}")
    add_arguments(parser)
    return run_command(lambda: _run(parser.parse_args(argv)))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``device`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("device", help="run a userspace WireGuard interface for wg and wg-quick")
    add_arguments(parser)
    parser.set_defaults(run=_run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_options` reads."""
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument(
        "-n",
        "--network",
        choices=[*Carrier],
        help="what carries the datagrams (default: $WGVSOCK_NETWORK, or vsock)",
    )
    parser.add_argument(
        "--framing",
        choices=[*Framing],
        help="how a stream frames them; compat is wireguard-go-vsock's (default: $WGVSOCK_FRAMING, or compat)",
    )
    parser.add_argument("interface", metavar="IFACE", help="name of the interface to make, such as wg0")


def _run(arguments: argparse.Namespace) -> int:
    return run_device(read_options(arguments, os.environ))


def read_options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> DeviceOptions:
    """Put command line and environment together.

    Raises:
        ConfigurationError: A variable has a value that means nothing.
    """
    return DeviceOptions(
        interface=arguments.interface,
        carrier=Carrier(arguments.network or _choice(environment, "WGVSOCK_NETWORK", [*Carrier]) or Carrier.VSOCK),
        framing=Framing(arguments.framing or _choice(environment, "WGVSOCK_FRAMING", [*Framing]) or Framing.COMPAT),
        foreground=arguments.foreground or environment.get("WG_PROCESS_FOREGROUND") == "1",
        tun_fd=_descriptor(environment, "WG_TUN_FD"),
        uapi_fd=_descriptor(environment, "WG_UAPI_FD"),
        log_level=environment.get("LOG_LEVEL", ""),  # not ours alone: a word that we do not know means nothing
    )


def _choice(environment: Mapping[str, str], name: str, choices: Collection[str]) -> str:
    value = environment.get(name, "")
    if value and value not in choices:
        raise ConfigurationError(
            f"cannot use the environment variable {name}",
            why=f"it is {value[:32]!r}",
            fix=f"set it to one of {', '.join(choices)}",
        )
    return value


def _descriptor(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ConfigurationError(
            f"cannot use the environment variable {name}",
            why=f"it is {value[:32]!r}",
            fix="set it to the number of an open descriptor",
        )
    return int(value)


def run_device(options: DeviceOptions, *, timings: Timings = _DEFAULT_TIMINGS) -> int:
    """Make the interface and its control socket, go into the background if asked to, and serve until the end.

    Args:
        options: What to make.
        timings: WireGuard's timers; laboratories shorten them.

    Raises:
        WgvsockError: Interface or control socket cannot be made.
    """
    with contextlib.ExitStack() as opened:
        tun = _open_tun(options)
        opened.callback(tun.close)
        path = socket_path(tun.name)
        listener = opened.enter_context(_open_listener(options, path))
        if not options.foreground:
            _go_into_background(options)
        configure(_LEVELS.get(options.log_level, "warning"))
        event_loop.run(_serve(options, timings, tun, listener, path))
    return 0


def _open_tun(options: DeviceOptions) -> Tun:
    if options.tun_fd is not None:
        return adopt_tun(options.tun_fd)
    tun = open_tun(options.interface)
    tun.set_mtu(DEFAULT_MTU)
    return tun


def _open_listener(options: DeviceOptions, path: Path) -> socket.socket:
    if options.uapi_fd is None:
        return open_control_socket(path)
    try:
        return socket.socket(fileno=options.uapi_fd)
    except OSError as error:
        raise ControlSocketError(
            f"cannot use descriptor {options.uapi_fd} as the control socket",
            why=error.strerror or str(error),
            fix="pass a listening Unix socket in WG_UAPI_FD",
        ) from None


def _go_into_background(options: DeviceOptions) -> None:
    """Go on as a child in a session of its own, and end the parent: interface and control socket are ready."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os._exit(0)  # nothing is cleaned up here: all of it is the child's now
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    # wireguard-go's rule: whoever asks for a log gets it on the terminal that the device was started from.
    silent = options.log_level in {"", "silent"}
    for descriptor in (0, 1, 2) if silent else (0,):
        os.dup2(null, descriptor)
    os.close(null)


async def _serve(options: DeviceOptions, timings: Timings, tun: Tun, listener: socket.socket, path: Path) -> None:
    endpoints = EndpointText(options.carrier)
    transport, sockets = _make_transport(options, endpoints)
    device = Device(
        random=secrets.token_bytes, wall_clock=time.time_ns, timings=timings, packet_headroom=tun.packet_headroom
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with Tunnel(device, tun, transport, on_event=_log_event) as tunnel:
        control = DeviceControl(device, sockets, endpoints, clock=time.monotonic, on_changed=tunnel.wake)
        server = UapiServer(control, listener, path)
        memory.settle()
        _log.info("the device is up", extra=fields(interface=tun.name, network=str(options.carrier)))
        await _first_of(server.serve(), tunnel.wait_ended(), ended.wait())
    _log.info("the device is down")


async def _first_of(*ends: Coroutine[None, None, object]) -> None:
    """Wait until one of them ends the device, and stop the others."""
    tasks = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        try:
            task.result()
        except SystemSetupError as error:
            _log.info("%s", error)  # somebody removed the interface: one of the ways to end a device


def _make_transport(options: DeviceOptions, endpoints: EndpointText) -> tuple[Transport, Sockets]:
    if options.carrier is Carrier.UDP:
        udp = UdpTransport()
        return udp, udp
    streams = StreamTransport(framing=options.framing)
    return streams, StreamSockets(streams, endpoints)


def _log_event(event: Event) -> None:
    match event:
        case HandshakeCompleted(peer):
            _log.debug("handshake completed", extra=fields(peer=_short(peer.public_key)))
        case HandshakeFailed(peer, attempts):
            _log.debug("no answer to handshake initiations", extra=fields(peer=_short(peer.public_key), sent=attempts))
        case EndpointChanged(peer, _, new):
            _log.debug("the endpoint has changed", extra=fields(peer=_short(peer.public_key), endpoint=new))
        case _:
            pass


def _short(public_key: bytes) -> str:
    """Enough to tell peers apart."""
    return base64.b64encode(public_key).decode()[:8]
