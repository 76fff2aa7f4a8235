"""Streams the packets of an enclave's tunnel to a client of the control socket, as a capture file.

A client that reads too slowly loses packets and costs a bounded amount of memory. It never delays the enclave's
packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections import deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Literal

from wgvsock.addresses import WIREGUARD_PORT, VsockAddress
from wgvsock.relay.enclaves.room import Room
from wgvsock.telemetry.endpoint import Answer, as_json, encode
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.transports.base import Link
from wgvsock.transports.sockets import send_all
from wgvsock.tunnel.pcap import FILE_HEADER, as_udp, record

MAX_WAITING: Final = 4 << 20
"""Bytes that may wait for a client: a few milliseconds of a tunnel at full speed."""

Layer = Literal["inner", "outer"]

_OURS: Final = (bytes((0, 0, 0, 3)), int(WIREGUARD_PORT))
"""The parent's CID as an address of four bytes, the form in which ``wg`` shows it, and the port."""

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.tcpdump.pcap\r\nConnection: close\r\n\r\n" + FILE_HEADER
)

_log = logging.getLogger(__name__)


class Recorder:
    """Turns packets into records that wait to be sent; see `wgvsock.tunnel.capture.Watcher`.

    Args:
        layer: The packets to record, inner or outer ones.
        headroom: Bytes in front of inner packets.
        wall_clock: Returns Unix time in nanoseconds.
        limit: Maximum number of bytes that may wait.

    Attributes:
        packets: Number of recorded packets.
        dropped: Number of packets that were dropped because the limit was reached.
    """

    def __init__(self, layer: Layer, headroom: int, wall_clock: Callable[[], int], limit: int = MAX_WAITING) -> None:
        self.packets = 0
        self.dropped = 0
        self.arrived = asyncio.Event()
        self._layer = layer
        self._headroom = headroom
        self._wall_clock = wall_clock
        self._limit = limit
        self._records: deque[bytes] = deque()
        self._waiting = 0

    def inner(self, packet: memoryview, *, outgoing: bool) -> None:
        """See `Watcher.inner`."""
        del outgoing
        if self._layer == "inner":
            self._add(packet[self._headroom :])

    def outer(self, link: Link, datagram: memoryview, *, outgoing: bool) -> None:
        """See `Watcher.outer`."""
        if self._layer == "outer" and self._waiting <= self._limit:
            address = link.address
            cid = address.cid if isinstance(address, VsockAddress) else 0
            theirs = (int(cid).to_bytes(4, "big"), int(WIREGUARD_PORT))
            ends = (_OURS, theirs) if outgoing else (theirs, _OURS)
            self._add(as_udp(datagram, *ends))
        elif self._layer == "outer":
            self.dropped += 1

    def take(self) -> bytes:
        """Take all waiting records."""
        data = b"".join(self._records)
        self._records.clear()
        self._waiting = 0
        self.arrived.clear()
        return data

    def _add(self, packet: bytes | memoryview) -> None:
        if self._waiting + len(packet) > self._limit:
            self.dropped += 1
            return
        data = record(self._wall_clock(), packet)
        self._records.append(data)
        self._waiting += len(data)
        self.packets += 1
        self.arrived.set()


class Captures:
    """The captures of a relay, at most one per enclave at a time.

    Args:
        rooms: Returns the open rooms by the enclave's name.
        wall_clock: Returns Unix time in nanoseconds.
    """

    def __init__(self, rooms: Callable[[], Mapping[str, Room]], wall_clock: Callable[[], int]) -> None:
        self._rooms = rooms
        self._wall_clock = wall_clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def take(self, query: Mapping[str, str], sock: socket.socket) -> None:
        """Start a capture, and take ownership of its connection.

        Args:
            query: ``enclave`` names the enclave, and may be omitted if there is only one. ``layer`` is ``inner`` or
                ``outer``.
            sock: The connection.
        """
        rooms = self._rooms()
        name = query.get("enclave") or (next(iter(rooms)) if len(rooms) == 1 else "")
        layer: Layer = "inner" if query.get("layer") == "inner" else "outer"
        room = rooms.get(name)
        if room is None:
            refusal = {"schema": SCHEMA, "enclave": None, "enclaves": sorted(rooms)}
            work = _refuse(sock, as_json(refusal, HTTPStatus.NOT_FOUND))
        elif name in self._tasks:
            work = _refuse(sock, Answer(json.dumps({"schema": SCHEMA, "busy": True}), status=HTTPStatus.CONFLICT))
        else:
            work = self._run(name, room, layer, sock)
        task = asyncio.ensure_future(work)
        if room is not None and name not in self._tasks:
            self._tasks[name] = task
            task.add_done_callback(lambda _: self._tasks.pop(name, None))

    def close(self) -> None:
        """Cancel all captures. They end soon after."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _run(self, name: str, room: Room, layer: Layer, sock: socket.socket) -> None:
        recorder = Recorder(layer, room.device.packet_headroom, self._wall_clock)
        _log.warning("packets are being captured", extra=fields(enclave=name, layer=layer))
        room.tunnel.watch(recorder)
        gone = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(sock, 1))
        try:
            with contextlib.suppress(OSError):
                await send_all(sock, _HEAD)
                while not gone.done():
                    arrival = asyncio.ensure_future(recorder.arrived.wait())
                    try:
                        await asyncio.wait({gone, arrival}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        arrival.cancel()
                    await send_all(sock, recorder.take())
        finally:
            room.tunnel.watch(None)
            gone.cancel()
            await asyncio.wait({gone})
            sock.close()
            counts = fields(enclave=name, packets=recorder.packets, dropped=recorder.dropped)
            _log.warning("the capture has ended", extra=counts)


async def _refuse(sock: socket.socket, answer: Answer) -> None:
    with sock, contextlib.suppress(OSError):
        await send_all(sock, encode(answer))
