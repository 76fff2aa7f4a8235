"""The Linux machine that this process runs on, as far as both services need it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from wgvsock.devices.base import TunDevice
from wgvsock.devices.tun import open_tun
from wgvsock.runtime.journal import Performer, Record
from wgvsock.system import netlink
from wgvsock.system.netlink import Netlink
from wgvsock.telemetry.logs import error_fields
from wgvsock.uapi.errors import ControlSocketError
from wgvsock.uapi.server import open_control_socket, socket_path

_log = logging.getLogger(__name__)


class LinuxMachine:
    """See `wgvsock.machine.base.Machine`. Each method delegates to the module in charge."""

    def monotonic(self) -> float:
        """See `Machine.monotonic`."""
        return time.monotonic()

    def wall_clock(self) -> int:
        """See `Machine.wall_clock`."""
        return time.time_ns()

    def random(self, size: int) -> bytes:
        """See `Machine.random`."""
        return os.urandom(size)

    def open_tun(self, name: str, *, packet_headroom: int) -> TunDevice:
        """See `Machine.open_tun`."""
        return open_tun(name, packet_headroom=packet_headroom)

    def open_netlink(self, record: Record) -> AbstractAsyncContextManager[Netlink]:
        """See `Machine.open_netlink`."""
        return netlink.open_netlink(record)

    def listen_for_wg(self, interface: str) -> tuple[socket.socket, Path] | None:
        """See `Machine.listen_for_wg`."""
        path = socket_path(interface)
        try:
            return open_control_socket(path), path
        except ControlSocketError as error:
            _log.info("wg cannot show the interface", extra=error_fields(error, interface=interface))
            return None

    def performers(self) -> Mapping[str, Performer]:
        """See `Machine.performers`."""
        return netlink.performers()
