"""The end of the tunnel on a relay without an interface: a device whose other side is the engine's process.

The egress policy applies here, between WireGuard and the engine. Therefore the engine's C code never parses a packet
that the policy denies. While the uplink is closed, nothing passes in either direction, whatever the engine does.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

from wgvsock.addresses import DNS_PORT, IpAddress
from wgvsock.devices.errors import TunGoneError
from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import ICMP, TCP, UDP
from wgvsock.egress.reading import ACK, SYN
from wgvsock.egress.verdict import Reason
from wgvsock.uplink.orders import network_of_relay
from wgvsock.virtio_net import ZERO_HEADER

QUEUE_BYTES: Final = 4 << 20
"""Bytes of send buffer in each direction. The kernel limits it to wmem_max for a process without privileges."""

_NAME_PORT: Final = struct.pack(">H", DNS_PORT)
_MINIMUM: Final = 20


class Mouth:
    """A `wgvsock.devices.base.TunDevice` on a pair of sockets.

    It lives as long as the tunnel and owns both ends of the pair. Successive engines use the far end.

    Args:
        packet_headroom: Bytes in front of each packet, as on a TUN: 0, or 10 for a virtio_net_hdr.
        clock: Returns monotonic seconds.

    Attributes:
        gate: The egress policy; None means that nothing passes.
        engine: The engine's end of the pair.
        closed_drops: Number of packets dropped while the device was closed, or too short.
    """

    udp_segmentation = False
    write_error = 0

    def __init__(self, packet_headroom: int, clock: Callable[[], float]) -> None:
        self.packet_headroom = packet_headroom
        self.gate: Gate | None = None
        self.closed_drops = 0
        self._clock = clock
        self._gateways: dict[int, bytes] = {}
        self._network: tuple[int, int] | None = None  # mask and address of the relay's IPv4 network for the engine
        self._forwards = False
        self._ours, self.engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self._ours, self.engine):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)

    @property
    def name(self) -> str:
        """See `TunDevice.name`."""
        return "userspace"

    def place(self, gateways: tuple[IpAddress, ...], *, forwards: bool) -> None:
        """Set the relay's tunnel addresses, and whether the relay answers DNS queries there."""
        self._gateways = {gateway.version: gateway.packed for gateway in gateways}
        networks = [network_of_relay(gateway) for gateway in gateways if isinstance(gateway, IPv4Address)]
        self._network = (int(networks[0].netmask), int(networks[0].network_address)) if networks else None
        self._forwards = forwards

    def open(self, gate: Gate) -> None:
        """Let those packets pass that the gate allows."""
        self.drain()
        self.gate = gate

    def shut(self) -> None:
        """Let nothing pass, and discard the packets in transit."""
        self.gate = None
        self.drain()

    def drain(self) -> None:
        """Discard the packets in transit in both directions, because a new engine does not know their flows."""
        for sock in (self._ours, self.engine):
            with contextlib.suppress(OSError):  # no more packets, or the socket is closed
                while sock.recv(1):
                    pass

    def fileno(self) -> int:
        """See `TunDevice.fileno`."""
        return self._ours.fileno()

    def read_into(self, buffer: memoryview) -> int:
        """See `TunDevice.read_into`."""
        headroom = self.packet_headroom
        while True:
            try:
                length = self._ours.recv_into(buffer[headroom:])
            except BlockingIOError:
                return 0
            except OSError as error:
                raise _gone(error) from None
            if not length:
                raise TunGoneError("the user-space uplink is gone", why="its socket was closed")
            if self._hears(buffer, length):
                return length + headroom

    def write(self, packet: memoryview) -> bool:
        """See `TunDevice.write`. A denied packet is not an error, just as behind a packet filter."""
        gate = self.gate
        if gate is None:
            self.closed_drops += 1
            return True
        now = self._clock()
        if not gate.passes(packet, now):
            return True
        if self._is_for_relay(packet[self.packet_headroom :]):
            gate.refuse(packet, Reason.RELAY.value, now)
            return True
        try:
            if self.packet_headroom:
                self._ours.send(packet)
            else:
                self._ours.sendmsg((ZERO_HEADER, packet))
        except BlockingIOError:
            self.write_error = errno.EAGAIN
            return False
        except OSError as error:
            self.write_error = error.errno or 0
            return False
        return True

    def set_offloads(self, enabled: bool) -> None:
        """See `TunDevice.set_offloads`. The engine's packets need no offloads."""

    def close(self) -> None:
        """See `TunDevice.close`."""
        self._ours.close()
        self.engine.close()

    def _hears(self, buffer: memoryview, length: int) -> bool:
        gate, headroom = self.gate, self.packet_headroom
        if gate is None or length < _MINIMUM:
            self.closed_drops += 1
            return False
        buffer[:headroom] = ZERO_HEADER[:headroom]
        gate.hears(buffer[: headroom + length], self._clock())
        return True

    def _is_for_relay(self, ip: memoryview) -> bool:
        """Whether a packet starts a flow to the relay's tunnel address that is neither a ping nor a DNS query.

        The engine would redirect it to this machine's loopback, where programs may trust every client. The enclave's
        answers to the relay, which reads the agent's reports, do not start a flow.
        """
        if ip[0] >> 4 == 4:
            destination, protocol, transport = ip[16:20], ip[9], 20
        else:
            destination, protocol, transport = ip[24:40], ip[6], 40
        gateway = self._gateways.get(ip[0] >> 4)
        if gateway is None or destination != gateway:
            return len(destination) == 4 and self._is_near_relay(destination)
        if protocol == TCP and ip[transport + 13] & (SYN | ACK) != SYN:
            return False
        if protocol in {TCP, UDP}:
            return not self._forwards or ip[transport + 2 : transport + 4] != _NAME_PORT
        return protocol != ICMP[ip[0] >> 4]

    def _is_near_relay(self, destination: memoryview) -> bool:
        """Whether the engine takes an address for the relay's that is unused, or that of another enclave."""
        if self._network is None:
            return False
        mask, network = self._network
        return int.from_bytes(destination, "big") & mask == network


def _gone(error: OSError) -> TunGoneError:
    return TunGoneError("the user-space uplink is gone", why=error.strerror or str(error))
