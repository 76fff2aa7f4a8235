"""One exchange seen at every capture point: the same packet, found again by a token in its payload.

A token is text that occurs nowhere else. An echo server sends it back, so that the request and the reply can both be
followed, through every rewriting of addresses, and through the encryption between the two interfaces called wg0.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Self

from lab.backend import Backend, PacketCapture
from lab.capture import CapturedPacket
from lab.deadline import Deadline
from lab.dissect import Dissector, Frame, checksum_needed, checksums_right, inner_packet, ip_layers
from lab.opener import EntropyLog, SessionOpener
from lab.topology import PACKET_POINTS, Point

_READABLE_RUN: Final = 8
"""Bytes of a token in a row that count as readable: by chance they appear once in 2^64 places."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet of the exchange at one point.

    Attributes:
        point: Where.
        time: When, Unix time in seconds.
        outgoing: Whether the machine of that point sent it; None at the vsock point.
        checksum_pending: Its transport checksum is not there yet, hardware is to fill it in.
        data: The IP packet, without padding.
    """

    point: Point
    time: float
    outgoing: bool | None
    checksum_pending: bool
    data: bytes

    @property
    def layers(self) -> Any:
        """Scapy's view."""
        return ip_layers(self.data)

    @property
    def source(self) -> str:
        """Source address."""
        return str(self.layers.src)

    @property
    def destination(self) -> str:
        """Destination address."""
        return str(self.layers.dst)

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port."""
        return int(self.layers.sport), int(self.layers.dport)

    @property
    def ttl(self) -> int:
        """TTL, or IPv6's hop limit."""
        layers = self.layers
        return int(layers.ttl if layers.version == 4 else layers.hlim)

    @property
    def payload(self) -> bytes:
        """What the transport header is followed by."""
        return bytes(self.layers.payload.payload)

    @property
    def checksums_right(self) -> bool:
        """Whether all its checksums are right; true of one that hardware has yet to fill in."""
        return self.checksum_pending or checksums_right(self.data)

    def summary(self) -> dict[str, Any]:
        """For people and JSON."""
        sport, dport = self.ports
        return {
            "source": self.source,
            "destination": self.destination,
            "source_port": sport,
            "destination_port": dport,
            "ttl": self.ttl,
            "bytes": len(self.data),
            "checksums_right": self.checksums_right,
        }


class VsockHistory:
    """Everything that has crossed the vsock point, dissected and opened as far as the Enclave's entropy allows.

    Args:
        backend: The laboratory. Its tap has to have recorded without a break.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._dissector = Dissector()
        self._log = EntropyLog()
        self._opener = SessionOpener(self._log)
        self._chunks_known = 0
        self._entropy_known = 0
        self.frames: list[Frame] = []
        self.opened: list[tuple[Frame, bytes]] = []

    def update(self) -> VsockHistory:
        """Take in what is new, and return itself."""
        chunks = self._backend.tap.chunks()
        # The entropy second: a key is drawn before it is used, so that all that the chunks need is in the log by now.
        with self._backend.entropy_log.open("rb") as stream:
            stream.seek(self._entropy_known)
            for line in stream:
                self._log.add(bytes.fromhex(line.decode()))
            self._entropy_known = stream.tell()
        frames = self._dissector.feed(chunks[self._chunks_known :])
        self._chunks_known = len(chunks)
        self.frames += frames
        self.opened += self._opener.open(frames)
        return self


class Observation:
    """Captures at every interface from its construction on, and what crossed the vsock point in that time.

    Args:
        backend: The laboratory.
        history: Of its vsock point.
        points: Where to capture.
    """

    def __init__(
        self, backend: Backend, history: VsockHistory, points: Collection[Point] = frozenset(PACKET_POINTS)
    ) -> None:
        self.token = f"wgvsock-{secrets.token_hex(12)}"
        self._backend = backend
        self._history = history
        self._start = time.time()
        self._captures: dict[Point, PacketCapture] = {
            point: backend.capture(point) for point in Point if point in points
        }
        self._known_chunks = len(backend.tap.chunks())

    def close(self) -> None:
        """Stop capturing; what was seen stays."""
        for capture in self._captures.values():
            capture.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def packets(self, point: Point) -> list[CapturedPacket]:
        """Everything seen at a point."""
        return self._captures[point].packets()

    def sightings(self, point: Point, *, to_port: int | None = None, from_port: int | None = None) -> list[Sighting]:
        """The packets with the token at one point, oldest first, of one direction by the server's port."""
        found = []
        for sighting in self._opened() if point is Point.VSOCK else self._captured(point):
            if self.token.encode() in sighting.data:
                sport, dport = sighting.ports
                if to_port in {None, dport} and from_port in {None, sport}:
                    found.append(sighting)
        return found

    def wait_for(
        self, point: Point, deadline: Deadline, *, to_port: int | None = None, from_port: int | None = None
    ) -> Sighting:
        """The first sighting, when it comes.

        Raises:
            LabTimeoutError: It did not come.
        """
        return deadline.poll(
            lambda: self.sightings(point, to_port=to_port, from_port=from_port), f"{self.token} at {point}"
        )[0]

    def in_order(self, *sightings: Sighting) -> bool:
        """Whether each passed no earlier than the one before it, as far as the machines' clocks can tell."""
        pairs = itertools.pairwise(sightings)
        return all(after.time >= before.time - self._backend.clock_error for before, after in pairs)

    def _captured(self, point: Point) -> list[Sighting]:
        packets = self._captures[point].packets()
        return [
            Sighting(point, packet.time, packet.outgoing, packet.checksum_pending, inner)
            for packet in packets
            if (inner := inner_packet(packet.ip))
        ]

    def _opened(self) -> list[Sighting]:
        return [
            Sighting(Point.VSOCK, frame.time, None, checksum_needed(plaintext), inner)
            for frame, plaintext in self.opened_frames()
            if (inner := inner_packet(plaintext))
        ]

    def frames(self) -> list[Frame]:
        """What crossed the vsock point since the start."""
        return [frame for frame in self._history.update().frames if frame.time >= self._start]

    def opened_frames(self) -> list[tuple[Frame, bytes]]:
        """The transport data of that time with its plaintext, as it was encrypted: with padding."""
        return [(frame, plain) for frame, plain in self._history.update().opened if frame.time >= self._start]

    def raw_vsock_bytes(self) -> bytes:
        """Every byte of both directions since the start."""
        return b"".join(chunk.data for chunk in self._backend.tap.chunks()[self._known_chunks :])

    def request_was_carried(self, port: int) -> bool:
        """Whether the token's request crossed the vsock point: without it, a search there proves nothing."""
        return bool(self.sightings(Point.VSOCK, to_port=port))

    def readable_at_vsock(self) -> bool:
        """Whether any part of the token can be read in the bytes at the vsock point."""
        raw, token = self.raw_vsock_bytes(), self.token.encode()
        return any(token[i : i + _READABLE_RUN] in raw for i in range(len(token) - _READABLE_RUN + 1))
