"""``wgvsock device``, also installed as ``wgvsock-device``: a userspace WireGuard that ``wg`` and ``wg-quick`` control.

It starts, goes into the background and ends as wireguard-go does. The parent returns once the interface and the control
socket exist. SIGINT, SIGTERM and the removal of the interface or of the socket all end it.

Environment, with wireguard-go's meanings: ``WG_TUN_FD`` and ``WG_UAPI_FD`` name open descriptors to use instead of new
ones, ``WG_PROCESS_FOREGROUND=1`` means ``--foreground``, and ``LOG_LEVEL`` is verbose, debug, info, error or silent.
``WGVSOCK_NETWORK`` and ``WGVSOCK_FRAMING`` set the defaults of the options, because wg-quick passes none.
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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wgvsock import __version__
from wgvsock.cli.ending import run_command
from wgvsock.cli.output import CommandParser
from wgvsock.cli.services import take_signals
from wgvsock.devices.tun import Tun, adopt_tun, open_tun
from wgvsock.errors import ConfigurationError, SystemSetupError
from wgvsock.framing import Framing
from wgvsock.runtime import event_loop, memory
from wgvsock.runtime.tasks import first_of
from wgvsock.system.routes import watch_routes
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
from wgvsock.wireguard.timers import STANDARD_TIMINGS

DEFAULT_MTU: Final = 1420
"""Bytes. WireGuard's usual MTU: an uplink of 1500 minus the headers of IPv6, UDP and WireGuard."""

_LEVELS: Final = {"verbose": "debug", "debug": "debug", "info": "info", "error": "error", "silent": "critical"}


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """All options of the command line and the environment.

    Attributes:
        interface: Name of the interface to create.
        carrier: What carries the datagrams.
        framing: How a stream frames them. `compat` is the framing of the paper's program.
        foreground: Stay in the foreground.
        tun_fd: Descriptor of an open TUN device to use. None: create one.
        uapi_fd: Descriptor of a listening control socket to use. None: create one.
        log_level: A value of LOG_LEVEL. Any other logs warnings. If empty or "silent", the background logs nothing.
    """

    interface: str
    carrier: Carrier = Carrier.VSOCK
    framing: Framing = Framing.COMPAT
    foreground: bool = False
    tun_fd: int | None = None
    uapi_fd: int | None = None
    log_level: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wgvsock-device`` and return the exit status. The installed command calls it through `wgvsock.cli.start`."""
    parser = CommandParser(
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
    parser.add_argument("interface", metavar="IFACE", help="name of the interface to create, such as wg0")


def _run(arguments: argparse.Namespace) -> int:
    return run_device(read_options(arguments, os.environ))


def read_options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> DeviceOptions:
    """Combine the command line and the environment.

    Raises:
        ConfigurationError: A variable has an invalid value.
    """
    return DeviceOptions(
        interface=arguments.interface,
        carrier=Carrier(arguments.network or _choice(environment, "WGVSOCK_NETWORK", [*Carrier]) or Carrier.VSOCK),
        framing=Framing(arguments.framing or _choice(environment, "WGVSOCK_FRAMING", [*Framing]) or Framing.COMPAT),
        foreground=arguments.foreground or environment.get("WG_PROCESS_FOREGROUND") == "1",
        tun_fd=_descriptor(environment, "WG_TUN_FD"),
        uapi_fd=_descriptor(environment, "WG_UAPI_FD"),
        log_level=environment.get("LOG_LEVEL", ""),  # other programs use it as well, so unknown words are no error
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


def run_device(options: DeviceOptions, *, timings: Timings = STANDARD_TIMINGS) -> int:
    """Create the interface and its control socket, go into the background unless told not to, and serve.

    Args:
        options: The options of the device.
        timings: WireGuard's timers, which the lab shortens.

    Returns:
        The exit status, once the device has ended.

    Raises:
        WgvsockError: The interface or the control socket cannot be created.
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
    """Continue as a child in a new session, and end the parent: interface and control socket are ready."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        for number in signal.sigpending() & {signal.SIGINT, signal.SIGTERM}:
            os.kill(child, number)  # the signal was meant for the device
        os._exit(0)  # without cleaning up, as everything belongs to the child now
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    # As in wireguard-go, a requested log goes to the terminal from which the device was started.
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
    ends = dict.fromkeys((signal.SIGINT, signal.SIGTERM), ended.set)
    take_signals({**ends, **dict.fromkeys((signal.SIGUSR1, signal.SIGUSR2), _pass_over)})  # as wireguard-go does
    async with Tunnel(device, tun, transport, on_event=_log_event) as tunnel:
        control = DeviceControl(device, sockets, endpoints, clock=time.monotonic, on_changed=tunnel.wake)
        server = UapiServer(control, listener, path)
        memory.settle()
        _log.info("the device is up", extra=fields(interface=tun.name, network=str(options.carrier)))
        try:
            await first_of(server.serve(), tunnel.wait_ended(), ended.wait())
        except SystemSetupError as error:
            _log.info("%s", error)  # removing the interface is one way to end the device
    _log.info("the device is down")


def _pass_over() -> None:
    pass


def _make_transport(options: DeviceOptions, endpoints: EndpointText) -> tuple[Transport, Sockets]:
    if options.carrier is Carrier.UDP:
        udp = UdpTransport(watch_routes=watch_routes)
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
            _log.debug("the endpoint changed", extra=fields(peer=_short(peer.public_key), endpoint=new))
        case _:
            pass


def _short(public_key: bytes) -> str:
    """The first 8 base64 characters of a key, enough to tell peers apart."""
    return base64.b64encode(public_key).decode()[:8]
