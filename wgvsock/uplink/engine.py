"""The engine's loop, which passes packets between the relay and the stack, and serves the stack's sockets.

One message on the packet socket is one IP packet. A packet from the enclave has a virtio-net header in front. If this
header marks the checksum as partial, the engine completes it. A packet for the enclave has no such header.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.errors import RemoteProtocolError
from wgvsock.uplink import complaints, frames, icmp, sandbox
from wgvsock.uplink.events import EPOLL, SLIRP
from wgvsock.uplink.flows import DatagramFlows, caller_of
from wgvsock.uplink.libslirp import POLL_OUT, Gateway, Slirp
from wgvsock.uplink.orders import MAX_MESSAGE, Begin, End, Port, Publish, Report, decode_order
from wgvsock.uplink.packets import complete_checksum, is_plain
from wgvsock.uplink.pings import Pings
from wgvsock.uplink.ports import MAX_PORTS, Ports, deepen
from wgvsock.uplink.queries import Queries
from wgvsock.uplink.rewriting import NamePort
from wgvsock.uplink.windows import HEAD, Windows
from wgvsock.virtio_net import HEADER_LENGTH, NEEDS_CSUM

BATCH: Final = 128
"""Packets taken in one turn. Each turn asks every connection what it waits for, so a turn has to do enough work."""

PATIENCE: Final = 0.05
"""Seconds to wait when the relay does not take a packet, before the packet is dropped. The engine reads no socket
during that time, which slows down the senders."""

REPORT_EVERY: Final = 1.0
"""Seconds between two reports."""

LONGEST_WAIT: Final = 1000
"""Milliseconds that a turn waits when nothing happens. The next report is due then."""

_IP_AT: Final = frames.HEADER
_HEADER_AT: Final = _IP_AT - HEADER_LENGTH
_CHECKSUM: Final = struct.Struct("<HH")


class Engine:
    """One stack and its sockets.

    Args:
        packets: One end of a SOCK_SEQPACKET pair. Each message is a packet.
        orders: One end of another such pair. Each message is an order or a report.

    Attributes:
        crowded: Number of packets refused because the limit on sockets was reached.
        dropped: Number of packets for the enclave that the relay did not take in time.
        odd: Number of packets from the enclave that the stack does not get: see `is_plain`.
    """

    def __init__(self, packets: socket.socket, orders: socket.socket) -> None:
        self._packets = packets
        self._orders = orders
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}  # descriptors of the stack, and the events asked for
        self._turn: set[int] = set()  # the descriptors that this turn waits for
        self._open: set[int] = set()  # of the enclave's flows
        self._listening: set[int] = set()
        self._local: set[int] = set()  # those of them that only this relay reaches
        self._flows = DatagramFlows()
        self._windows = Windows(self._put, caller_of)
        self._ports = Ports(self._forward, self._unforward)
        self._gateways: dict[int, bytes] = {}
        self._watch_own = partial(self._epoll.register, eventmask=select.EPOLLIN)
        self._pings = Pings(self._watch_own, self._epoll.unregister, self._gateways)
        self._beside: list[Pings | Queries] = [self._pings]  # what does without the stack
        self._buffer = bytearray(_IP_AT + 65_536 + 64)
        self._view = memoryview(self._buffer)
        self._array = (ctypes.c_char * len(self._buffer)).from_buffer(self._buffer)
        self._frame = ctypes.addressof(self._array)
        self._questions: list[bytes] = []
        self._own: frozenset[bytes] = frozenset()
        self._names: NamePort | None = None
        self._slirp: Slirp
        self._limit = 0
        self.crowded = self.dropped = self.odd = 0
        self._draining = False
        self._missing: tuple[str, ...] = ()
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._report_at = 0.0

    def begin(self, order: Begin) -> None:
        """Create the stack, and enter the sandbox.

        Raises:
            EngineMissingError: libslirp is missing or too old.
        """
        gateways: dict[int, IpAddress] = {gateway.version: gateway for gateway in order.gateways}
        self._slirp = Slirp(
            Gateway(gateways.get(4), gateways.get(6)),  # type: ignore[arg-type]
            send=self._send,
            opened=self._opened,
            closed=self._closed,
            wait_for=self._wait_for,
            clock=time.monotonic_ns,
        )
        self._own = frozenset(address.packed for address in order.addresses)
        self._gateways.update((version, gateway.packed) for version, gateway in gateways.items())
        if order.dns_port:
            self._names = NamePort(order.gateways, order.dns_port)
            self._beside.append(Queries(self._watch_own, order.gateways, order.dns_port))
        for address in order.addresses:
            self._input(frames.introduction(address))
        if order.reports:
            Path(order.reports).unlink(missing_ok=True)
            self._listen(partial(self._slirp.forward_unix, order.reports, order.addresses[0], order.report_port))
        self._limit, spare = sandbox.divide(order.max_connections, MAX_PORTS)
        self._missing = sandbox.enter(self._limit, descriptors=self._limit + spare)

    def publish(self, order: Publish) -> dict[str, int]:
        """Forward exactly these ports to the enclave.

        Returns:
            The errno for each port that could not be bound, by the port's text.
        """
        self._draining = order.draining
        return self._ports.publish(order.ports, time.monotonic())

    def _forward(self, port: Port) -> int:
        return self._listen(partial(self._slirp.forward, port.protocol, port.port, port.address, port.address_port))

    def _unforward(self, port: Port) -> None:
        self._slirp.unforward(port.protocol, port.port, port.address)
        if port.protocol == "tcp" and not self._draining:
            for told in self._windows.end(port.address.packed, port.address_port):
                self._write(told)

    def run(self) -> None:
        """Run until the relay is gone.

        Raises:
            EngineMissingError: libslirp is missing or too old.
            RemoteProtocolError: The first message is not an order to begin.
        """
        order = decode_order(self._orders.recv(MAX_MESSAGE))
        if not isinstance(order, Begin):
            raise RemoteProtocolError("the engine was not told to begin")
        self.begin(order)
        self.listen_to_relay()
        while self.turn():
            pass

    def listen_to_relay(self) -> None:
        """Let turns take packets and orders from now on."""
        for sock in (self._packets, self._orders):
            sock.setblocking(False)
            self._epoll.register(sock, select.EPOLLIN)

    def close(self) -> None:
        """End all connections and close the engine's descriptors, but not the relay's sockets."""
        for one in self._beside:
            one.close()
        if hasattr(self, "_slirp"):
            self._slirp.close()
        self._epoll.close()
        os.close(self._memory)

    def turn(self, longest: int = LONGEST_WAIT) -> bool:
        """Wait for events and serve them.

        Args:
            longest: Milliseconds to wait at most.

        Returns:
            False if the relay is gone.
        """
        self._turn.clear()
        timeout = self._slirp.fill(int(1000 * self._ports.patience(longest / 1000)))
        ready: dict[int, int] = {}
        special: list[int] = []
        for fd, events in self._epoll.poll(timeout / 1000):
            if fd in self._turn:
                ready[fd] = SLIRP[events & 31] if not events & select.EPOLLERR else self._complained(fd, events)
            elif fd in self._watched:
                self._forget(fd)  # no longer waited for; epoll reports errors all the same
            else:
                special.append(fd)
        self._slirp.poll(ready)
        self._windows.drained(fd for fd, events in ready.items() if events & POLL_OUT)
        for fd in special:
            if fd == self._packets.fileno():
                if not self._take_packets():
                    return False
            elif fd == self._orders.fileno():
                if not self._take_order():
                    return False
            else:
                self._receive(fd)
        self._answer_questions()
        now = time.monotonic()
        if self._ports.hurry(now) or now >= self._report_at:
            self._report(now)
        return True

    # The stack's descriptors.

    def _wait_for(self, fd: int, events: int, _: int | None) -> int:
        if fd not in self._open:
            if fd not in self._listening:  # libslirp 4.7 does not announce those that accept connections
                self._listening.add(fd)
                self._local |= set() if deepen(fd) else {fd}
            if self.connections >= self._limit and fd not in self._local:
                return fd  # the client waits in the kernel's queue
        self._turn.add(fd)
        watched = self._watched.get(fd)
        if watched != events:
            if watched is None:
                self._epoll.register(fd, EPOLL[events & 31])
            else:
                self._epoll.modify(fd, EPOLL[events & 31])
            self._watched[fd] = events
        return fd

    def _complained(self, fd: int, events: int) -> int:
        """Forward a socket's ICMP error to the enclave, and return the events that remain for the stack."""
        if (end := self._flows.end_of(fd)) and (told := complaints.of_datagram(fd, end, self._gateways)):
            self._write(told)
            return SLIRP[events & 31 & ~select.EPOLLERR]
        return SLIRP[events & 31]

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _opened(self, fd: int) -> None:
        self._open.add(fd)
        self._flows.opened(fd)
        self._windows.opened(fd)

    def _closed(self, fd: int) -> None:
        self._forget(fd)
        self._open.discard(fd)
        self._listening.discard(fd)
        self._local.discard(fd)
        self._flows.closed(fd)
        self._windows.closed(fd)

    def _receive(self, fd: int) -> None:
        for one in self._beside:
            if fd in one and (packet := one.receive(fd)):
                self._write(packet)

    def _listen(self, forward: Callable[[], int]) -> int:
        """Run `forward` and record the descriptors that it opens as listening. Returns 0 or an errno."""
        flows, self._open = self._open, self._listening
        error = forward()
        self._open = flows
        return error

    @property
    def connections(self) -> int:
        """Number of sockets that serve the enclave's flows."""
        return len(self._open) + len(self._pings)

    # Packets.

    def _take_packets(self) -> bool:
        room = self._view[_HEADER_AT:]
        receive = self._packets.recv_into
        for _ in range(BATCH):
            try:
                length = receive(room)
            except BlockingIOError:
                return True
            if not length:
                return False
            if length > HEADER_LENGTH + 20:
                self._take(length - HEADER_LENGTH)
        return True

    def _take(self, length: int) -> None:
        """Handle the packet of this length, in bytes, that is in the buffer."""
        view = self._view
        packet = view[_IP_AT : _IP_AT + length]
        if not is_plain(packet):
            self.odd += 1
            return
        if told := icmp.expired(packet, self._gateways):
            self._write(told)
            return
        version = packet[0] >> 4
        is_open = bool(view[_HEADER_AT] & NEEDS_CSUM)
        if self._names is not None:
            self._names.to_forwarder(packet, checksum_is_open=is_open)
        if is_open:
            complete_checksum(packet, *_CHECKSUM.unpack_from(view, _HEADER_AT + 6))
        for one in self._beside:
            if one.takes(packet):
                if told := one.send(packet):
                    self._write(told)
                return
        if self.connections >= self._limit and self._flows.begins(packet):
            self.crowded += 1
            return
        if self._windows.keeps(packet):
            return
        self._flows.sends(packet)
        view[:_IP_AT] = frames.TO_ROUTER[version]
        self._slirp.input(self._frame, _IP_AT + length)
        self._windows.feed()

    def _put(self, packet: bytes) -> None:
        self._input(frames.TO_ROUTER[packet[0] >> 4] + packet)

    def _input(self, frame: bytes) -> None:
        self._view[: len(frame)] = frame
        self._slirp.input(self._frame, len(frame))

    def _send(self, frame: int, length: int) -> None:
        """Handle a frame from the stack, given by its address in memory and its length in bytes."""
        start = ctypes.string_at(frame, min(length, _IP_AT + HEAD))
        kind = start[12:14]
        if kind == frames.ARP or frames.is_neighbour_discovery(start):
            self._questions.append(start)
        elif kind in {frames.IPV4, frames.IPV6}:
            told = self._windows.gives(head := start[_IP_AT:])
            if told is None or len(told) > len(head):
                if told:
                    self._write(told)
                return
            if told is not head:
                ctypes.memmove(frame + _IP_AT, told, len(told))  # the frame is the library's own copy
            self._write(ctypes.string_at(frame + _IP_AT, length - _IP_AT))

    def _write(self, packet: bytes) -> None:
        """Pass a packet for the enclave to the relay."""
        if self._names is not None:
            packet = self._names.answered(packet)
        try:
            self._packets.send(packet)
        except BlockingIOError:
            self._write_late(packet)
        except OSError:  # the relay is gone; the next read ends the loop
            self.dropped += 1

    def _write_late(self, packet: bytes) -> None:
        waiting = select.poll()
        waiting.register(self._packets, select.POLLOUT)
        with contextlib.suppress(OSError):
            if waiting.poll(PATIENCE * 1000):
                self._packets.send(packet)
                return
        self.dropped += 1

    def _answer_questions(self) -> None:
        """Answer the stack's address requests, outside the callback: the stack is not reentrant."""
        while self._questions:
            if told := frames.answer(self._questions.pop(), self._own):
                self._input(told)

    # Orders.

    def _take_order(self) -> bool:
        message = self._orders.recv(MAX_MESSAGE)
        if not message:
            return False
        order = decode_order(message)
        if isinstance(order, End):
            for told in self._windows.end_all():
                self._write(told)
            return False
        if isinstance(order, Publish):
            self.publish(order)
            self._report(time.monotonic())
        return True

    def _report(self, now: float) -> None:
        self._report_at = now + REPORT_EVERY
        pages = int(os.pread(self._memory, 100, 0).split()[1])
        report = Report(
            version=self._slirp.version,
            connections=self.connections,
            tcp=self._windows.connections,
            crowded=self.crowded,
            resident=pages * resource.getpagesize(),
            dropped=self.dropped,
            odd=self.odd,
            failed=self._ports.bind(),
            published=len(self._ports),
            sandbox=self._missing,
        )
        with contextlib.suppress(OSError):  # the relay is busy or gone; the next report has the same content
            self._orders.send(report.encode())
