"""Looks for packets of an enclave where none may be: at every interface of a machine, including later ones.

Beyond the pod's translation there is no packet with an address of the tunnel. One that is seen nevertheless went out
untranslated, or came in for a neighbour to answer: both are unencrypted. On a tunnel's own interface there are only
that tunnel's addresses, which is how enclaves are isolated.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from lab.netns import namespaces
from wgvsock.addresses import IpAddress, IpNetwork
from wgvsock.system.filter.probe import DESTINATIONS

_ETH_P_ALL: Final = 0x0003
_SO_RCVBUFFORCE: Final = 33
_ARPHRD_NONE: Final = 0xFFFE
_BUFFER: Final = 16 << 20
_HEADERS: Final = 64  # bytes: an IPv6 header and the ports after it
_PERIOD: Final = 0.1
_KEPT: Final = 1000
"""Sightings that are kept: open forwarding causes thousands."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet where it must not be, because one of its addresses belongs to a tunnel's network."""

    time: float
    machine: str
    interface: str
    source: str
    destination: str
    ports: tuple[int, int]
    network: IpNetwork

    def __str__(self) -> str:
        return f"{self.source} > {self.destination} {self.ports} at {self.machine}.{self.interface}"


def addresses_of(packet: bytes) -> tuple[IpAddress, IpAddress, bytes] | None:
    """Return source, destination and the rest after the header of an IP packet, or None for anything else."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), packet[(packet[0] & 15) * 4 :]
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), packet[40:]
    return None


class Rules:
    """Where a tunnel's addresses may be seen.

    Args:
        tunnels: The networks of each tunnel, by machine and interface, which may be a pattern (fnmatch).
    """

    def __init__(self, tunnels: Mapping[str, Sequence[IpNetwork]]) -> None:
        self._tunnels = tunnels

    def forbid(self, interface: str, packet: bytes) -> tuple[str, str, tuple[int, int], IpNetwork] | None:
        """Return source, destination, ports and the tunnel's network of a forbidden packet. None: it is allowed."""
        found = addresses_of(packet)
        if found is None:
            return None
        source, destination, rest = found
        if destination in DESTINATIONS.values():  # the Relay's own probe of the machine's rules
            return None
        for name, networks in self._tunnels.items():
            if fnmatchcase(interface, name):
                continue
            for network in networks:
                if source in network or destination in network:
                    ports = struct.unpack_from("!HH", rest) if len(rest) >= 4 else (0, 0)
                    return str(source), str(destination), (int(ports[0]), int(ports[1])), network
        return None


class Watch:
    """Watches machines until it is closed.

    Args:
        machines: Namespace by machine.
        rules: What must not be seen.
        clock: Returns Unix seconds at the moment when a packet is read, at most a tenth of a second after it passed.
    """

    def __init__(self, machines: Mapping[str, str], rules: Rules, clock: Callable[[], float] = time.time) -> None:
        self._rules = rules
        self._clock = clock
        self._sightings: list[Sighting] = []
        self._sockets = {machine: namespaces.inside(name, _open) for machine, name in machines.items()}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def take(self) -> list[Sighting]:
        """Return what was seen since the last call."""
        found, self._sightings = self._sightings, []
        return found

    def close(self) -> None:
        """Stop."""
        self._ending.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()

    def _run(self) -> None:
        while not self._ending.wait(_PERIOD):
            for machine, sock in self._sockets.items():
                self._drain(machine, sock)

    def _drain(self, machine: str, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while not self._ending.is_set():  # however much arrives
                try:
                    data, address = sock.recvfrom(_HEADERS)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    continue  # ENETDOWN: an interface is gone, the others remain
                name, _, _, hardware, _ = address
                if not name and hardware == _ARPHRD_NONE:
                    continue  # it passed a tunnel that is gone by now, and only the pod has tunnels
                if (found := self._rules.forbid(f"{machine}.{name}", data)) and len(self._sightings) < _KEPT:
                    self._sightings.append(Sighting(self._clock(), machine, name, *found))


def _open() -> socket.socket:
    """Return a packet socket at every interface of the calling thread's namespace, without link headers."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
    with contextlib.suppress(PermissionError):  # in a user namespace net.core.rmem_max is the limit
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    return sock
