"""The vsock point: a process between the Relay's connection and the Enclave's listener that records and injects faults.

It takes the place of the hypervisor, and sees what a hostile parent instance sees: every byte of both directions. The
traffic is written to a pcap file (link type USER0) with a pseudo-header in front of each record::

    connection:u32be | vsock port:u32be | kind:u8 | bytes

Faults are requested over a control socket, one JSON object per line in each direction. `TapControl` is its client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from lab.dial import dial, dial_now
from lab.errors import LabError
from lab.guest.packets import LINKTYPE_USER0, PcapReader, write_pcap_header, write_pcap_record
from wgvsock.addresses import HybridVsockAddress, StreamAddress, UnixAddress, parse_stream_address
from wgvsock.errors import WgvsockError
from wgvsock.transports.sockets import listen_stream

PSEUDO_HEADER: Final = struct.Struct(">IIB")
_CONTROL_TIMEOUT: Final = 10.0  # seconds
_RECORDING_LIMIT: Final = 1 << 30
"""Bytes after which recording stops, because a bulk transfer must not fill the disk. `Tap.status` reports it."""


class Kind(IntEnum):
    """The type of a record."""

    TO_ENCLAVE = 0
    TO_RELAY = 1
    OPENED = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class Chunk:
    """One read at the vsock point, or the opening or end of a connection (then without data)."""

    time: float
    connection: int
    port: int
    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True)
class TapRoute:
    """One vsock port: the address on which the Relay's connection arrives, and the Enclave's."""

    port: int
    listen: StreamAddress
    upstream: StreamAddress

    @classmethod
    def parse(cls, text: str) -> TapRoute:
        """Parse ``PORT=LISTEN=UPSTREAM``."""
        port, listen, upstream = text.split("=")
        return cls(int(port), parse_stream_address(listen), parse_stream_address(upstream))

    def __str__(self) -> str:
        return f"{self.port}={self.listen}={self.upstream}"


class Recording:
    """The pcap file of the traffic."""

    def __init__(self, stream: BinaryIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self.enabled = True
        self.bytes = 0
        write_pcap_header(stream, LINKTYPE_USER0)

    def note(self, connection: int, port: int, kind: Kind, data: bytes = b"") -> None:
        """Write one record."""
        if self.enabled and self.bytes < _RECORDING_LIMIT:
            self.bytes += len(data)
            write_pcap_record(self._stream, self._clock(), PSEUDO_HEADER.pack(connection, port, kind) + data)
            self._stream.flush()


class _End(asyncio.Protocol):
    """One end of a connection: the Relay's or the Enclave's."""

    transport: asyncio.Transport

    def __init__(self, connection: _Connection, kind: Kind) -> None:
        self.connection = connection
        self.kind = kind  # of the bytes that this end sends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.connection.end_ready(self)

    def data_received(self, data: bytes) -> None:
        self.connection.pass_on(self.kind, data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.connection.close()

    def pause_writing(self) -> None:
        self.connection.set_congested(self, congested=True)

    def resume_writing(self) -> None:
        self.connection.set_congested(self, congested=False)


class _Connection:
    """Two ends joined, with the tap's faults between them."""

    def __init__(self, tap: Tap, route: TapRoute) -> None:
        self.tap = tap
        self.route = route
        self.number = tap.next_number()
        self.relay = _End(self, Kind.TO_ENCLAVE)
        self.enclave = _End(self, Kind.TO_RELAY)
        self.held: deque[tuple[float, Kind, bytes]] = deque()
        self._congested: set[_End] = set()
        self._both_ready = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._dial: asyncio.Task[None] | None = None

    def end_ready(self, end: _End) -> None:
        """Dial the Enclave after the Relay has connected, and let the bytes pass once the Enclave is reached."""
        if end is self.relay:
            self.tap.connections.add(self)
            # Not at once: Python 3.11.2 begins to read after `connection_made`, whatever was requested in it.
            asyncio.get_running_loop().call_soon(self.relay.transport.pause_reading)
            self._dial = asyncio.create_task(self._reach_enclave())
        elif self._closed:  # while the Enclave was dialled
            end.transport.abort()
        else:
            self._both_ready = True
            self.tap.recording.note(self.number, self.route.port, Kind.OPENED)
            self.apply_flow()

    async def _reach_enclave(self) -> None:
        try:
            sock = await dial(self.tap.upstream(self.route.port))
            await asyncio.get_running_loop().create_connection(lambda: self.enclave, sock=sock)
        except (WgvsockError, OSError):
            self.close()

    def pass_on(self, kind: Kind, data: bytes) -> None:
        """Send one end's data to the other, through the faults."""
        self.tap.recording.note(self.number, self.route.port, kind, data)
        data = self.tap.damage(self.route.port, kind, data)
        if self.tap.holding or self.tap.delay or self.held:
            self.held.append((asyncio.get_running_loop().time() + self.tap.delay, kind, data))
            self.release()
        else:
            self._write(kind, data)

    def release(self) -> None:
        """Release held data that is due, in order."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.held and not self.tap.holding and (self.held[0][0] <= loop.time() or not self.tap.delay):
            _, kind, data = self.held.popleft()
            self._write(kind, data)
        if self.held and not self.tap.holding:
            self._timer = loop.call_at(self.held[0][0], self.release)

    def _write(self, kind: Kind, data: bytes) -> None:
        end = self.enclave if kind is Kind.TO_ENCLAVE else self.relay
        if not end.transport.is_closing():
            end.transport.write(data)

    def set_congested(self, end: _End, *, congested: bool) -> None:
        """Adjust reading of the other end when an end's outgoing buffer is full, or has space again."""
        (self._congested.add if congested else self._congested.discard)(end)
        self.apply_flow()

    def apply_flow(self) -> None:
        """Read an end only while the other accepts its data, and while nothing is stalled."""
        if not self._both_ready or self._closed:
            return
        for end, other in ((self.relay, self.enclave), (self.enclave, self.relay)):
            if self.tap.stalled or other in self._congested:
                end.transport.pause_reading()
            else:
                end.transport.resume_reading()

    def close(self) -> None:
        """Cut both ends, as a vsock reset does. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.tap.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._both_ready:
            self.tap.recording.note(self.number, self.route.port, Kind.CLOSED)
        for end in (self.relay, self.enclave):
            if hasattr(end, "transport"):
                end.transport.abort()


class Tap:
    """Listens on every route and joins what it accepts to the Enclave's listener."""

    def __init__(self, routes: list[TapRoute], recording: Recording) -> None:
        self.routes = routes
        self.recording = recording
        self.connections: set[_Connection] = set()
        self.stalled = False
        self.holding = False
        self.refusing = False
        self.delay = 0.0
        self._flips: list[tuple[int | None, Kind, int]] = []
        self._upstreams = {route.port: route.upstream for route in routes}
        self._count = 0
        self._servers: list[asyncio.Server] = []

    def next_number(self) -> int:
        """Number of the next connection, from 1."""
        self._count += 1
        return self._count

    def upstream(self, port: int) -> StreamAddress:
        """Return the Enclave's current address for a port."""
        return self._upstreams[port]

    async def start(self) -> None:
        """Start to listen.

        Raises:
            TransportError: An address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        for route in self.routes:
            sock = listen_stream(route.listen)
            if isinstance(route.listen, UnixAddress):  # replaces a vsock, to which every user may connect
                os.chmod(route.listen.path, 0o666)  # noqa: PTH101, S103
            self._servers.append(await loop.create_server(lambda route=route: self._accept(route), sock=sock))  # type: ignore[misc]

    def _accept(self, route: TapRoute) -> asyncio.Protocol:
        return _Refused() if self.refusing else _Connection(self, route).relay

    def damage(self, port: int, kind: Kind, data: bytes) -> bytes:
        """Apply the flips that wait for bytes of this port and direction."""
        for flip in [flip for flip in self._flips if flip[0] in {None, port} and flip[1] is kind]:
            offset = flip[2]
            if offset < len(data):
                data = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
                self._flips.remove(flip)
        return data

    def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request of the control socket."""
        match request:
            case {"verb": "status"}:
                pass
            case {"verb": "stall"}:
                self.stalled = True
            case {"verb": "hold"}:
                self.holding = True
            case {"verb": "delay", "seconds": float() | int() as seconds}:
                self.delay = float(seconds)
            case {"verb": "refuse"}:
                self.refusing = True
            case {"verb": "drop"}:
                for connection in list(self.connections):
                    connection.close()
            case {
                "verb": "flip",
                "port": int() | None as port,
                "to": "enclave" | "relay" as end,
                "offset": int() as offset,
            }:
                self._flips.append((port, Kind.TO_ENCLAVE if end == "enclave" else Kind.TO_RELAY, offset))
            case {"verb": "reroute", "port": int() as port, "upstream": str() as upstream}:
                self._upstreams[port] = parse_stream_address(upstream)
            case {"verb": "record", "on": bool() as on}:
                self.recording.enabled = on
            case {"verb": "resume"}:
                self.stalled = self.holding = self.refusing = False
                self.delay = 0.0
                self._flips.clear()
            case _:
                return {"ok": False, "error": "unknown request"}
        for connection in list(self.connections):
            connection.apply_flow()
            connection.release()
        return {"ok": True, **self.status()}

    def status(self) -> dict[str, Any]:
        """Return the current state."""
        return {
            "connections": [{"number": c.number, "port": c.route.port} for c in self.connections],
            "accepted": self._count,
            "faults": [
                name
                for name, on in (
                    ("stall", self.stalled),
                    ("hold", self.holding),
                    ("refuse", self.refusing),
                    ("delay", bool(self.delay)),
                    ("flip", bool(self._flips)),
                )
                if on
            ],
            "recorded_bytes": self.recording.bytes,
            "recording": self.recording.enabled and self.recording.bytes < _RECORDING_LIMIT,
        }


class _Refused(asyncio.Protocol):
    """Refuse a connection, as if the listener were gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


class _Control(asyncio.Protocol):
    """One client of the control socket."""

    transport: asyncio.Transport

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self.transport.write(json.dumps(self._tap.command(json.loads(line))).encode() + b"\n")


class TapControl:
    """Client of a running tap: reads the recording, injects faults. Blocking calls of a few milliseconds.

    Attributes:
        clock_offset: Seconds that this clock is ahead of the tap's.
    """

    def __init__(self, control: UnixAddress | HybridVsockAddress, recording: Path) -> None:
        self.recording = recording
        self.clock_offset = 0.0
        self._control = control
        self._stream: BinaryIO | None = None
        self._reader: PcapReader | None = None
        self._chunks: list[Chunk] = []

    def chunks(self) -> list[Chunk]:
        """Return everything that has passed since the tap was started, oldest first."""
        self.refresh()
        if self._reader is None:
            self._stream = self.recording.open("rb")
            self._reader = PcapReader(self._stream)
        for when, record in self._reader.records():
            connection, port, kind = PSEUDO_HEADER.unpack_from(record)
            data = record[PSEUDO_HEADER.size :]
            self._chunks.append(Chunk(when + self.clock_offset, connection, port, Kind(kind), data))
        return self._chunks

    def refresh(self) -> None:
        """Update the recording. Does nothing for a tap on this machine, which writes to it."""

    def close(self) -> None:
        """Close the recording. Idempotent."""
        if self._stream is not None:
            self._stream.close()
            self._stream = self._reader = None

    def status(self) -> dict[str, Any]:
        """Return connections, active faults and recorded bytes."""
        return self._ask(verb="status")

    def stall(self) -> None:
        """Stop reading both ends: their buffers fill, as when the hypervisor's queue does."""
        self._ask(verb="stall")

    def hold(self) -> None:
        """Accept and keep what is sent: no buffer fills, and nothing arrives, until `resume`."""
        self._ask(verb="hold")

    def delay(self, seconds: float) -> None:
        """Delay everything."""
        self._ask(verb="delay", seconds=seconds)

    def refuse(self) -> None:
        """Cut every new connection at once, as if nothing listened."""
        self._ask(verb="refuse")

    def drop(self) -> None:
        """Cut every connection, as a vsock reset does."""
        self._ask(verb="drop")

    def flip(self, *, to: str, offset: int = 0, port: int | None = None) -> None:
        """Flip the lowest bit of one byte, in the next long enough read towards ``"enclave"`` or ``"relay"``."""
        self._ask(verb="flip", to=to, offset=offset, port=port)

    def reroute(self, port: int, upstream: StreamAddress) -> None:
        """Dial the Enclave elsewhere from now on, after it has returned with another CID."""
        self._ask(verb="reroute", port=port, upstream=str(upstream))

    def record(self, *, on: bool) -> None:
        """Switch recording off for a bulk transfer, and on again."""
        self._ask(verb="record", on=on)

    def resume(self) -> None:
        """End every fault. What was held arrives."""
        self._ask(verb="resume")

    def _ask(self, **request: object) -> dict[str, Any]:
        with _control_socket(self._control) as sock:
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        if not answer.pop("ok"):
            raise LabError("the tap refused a request", why=str(answer.get("error")))
        return answer


def _control_socket(address: UnixAddress | HybridVsockAddress) -> socket.socket:
    try:
        return dial_now(address, timeout=_CONTROL_TIMEOUT)
    except WgvsockError as error:
        raise LabError(f"cannot reach the tap at {address}", why=str(error)) from None


async def _run(arguments: argparse.Namespace) -> None:
    with arguments.recording.open("wb", buffering=0) as stream:
        tap = Tap([TapRoute.parse(route) for route in arguments.route], Recording(stream))
        await tap.start()
        control = listen_stream(arguments.control)
        await asyncio.get_running_loop().create_server(lambda: _Control(tap), sock=control)
        print("ready", flush=True)
        await asyncio.Event().wait()


def main(argv: list[str]) -> int:
    """Run until killed."""
    parser = argparse.ArgumentParser(
        prog="lab.watch.tap", description="record and disturb the traffic at the vsock point"
    )
    parser.add_argument("--recording", type=Path, required=True, metavar="FILE.pcap")
    parser.add_argument("--control", required=True, metavar="ADDRESS", type=parse_stream_address)
    parser.add_argument("route", nargs="+", metavar="PORT=LISTEN=UPSTREAM")
    asyncio.run(_run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
