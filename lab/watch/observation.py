"""One exchange seen at every capture point: the same packet, identified by a token in its payload.

A token is text that occurs nowhere else. An echo server returns it, so that both the request and the reply can be
followed through every rewriting of addresses, and through the encryption between the two interfaces called wg0.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from lab.deadline import Deadline
from lab.guest.packets import CapturedPacket
from lab.topology import PACKET_POINTS, Point
from lab.watch.capture import PacketCapture
from lab.watch.dissect import Dissector, Frame, checksum_needed, checksums_right, inner_packet, ip_layers
from lab.watch.opener import EntropyLog, SessionOpener
from lab.watch.tap import TapControl

_READABLE_RUN: Final = 8
"""Consecutive bytes of a token that count as readable: by chance they appear once in 2^64 places."""


class Watched(Protocol):
    """What following an exchange needs from a laboratory. See `lab.backend.Backend`."""

    tap: TapControl
    clock_error: float

    @property
    def entropy_log(self) -> Path:
        """The entropy that the Enclave drew, a file on this machine."""
        ...

    def capture(self, point: Point) -> PacketCapture:
        """Start to capture."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet of the exchange at one point.

    Attributes:
        point: The capture point.
        time: Unix time in seconds.
        outgoing: Whether the machine of that point sent it. None at the vsock point.
        checksum_pending: Its transport checksum is missing, because hardware is to fill it in.
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
        """The payload after the transport header."""
        return bytes(self.layers.payload.payload)

    @property
    def checksums_right(self) -> bool:
        """Whether all its checksums are right. True if hardware has yet to fill one in."""
        return self.checksum_pending or checksums_right(self.data)

    def summary(self) -> dict[str, Any]:
        """Return it for people and JSON."""
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
    """Everything that has crossed the vsock point, dissected, and opened as far as the Enclave's entropy allows.

    Args:
        laboratory: Its tap has to have recorded without interruption.
    """

    def __init__(self, laboratory: Watched) -> None:
        self._laboratory = laboratory
        self._dissector = Dissector()
        self._log = EntropyLog()
        self._opener = SessionOpener(self._log)
        self._chunks_known = 0
        self._entropy_known = 0
        self.frames: list[Frame] = []
        self.opened: list[tuple[Frame, bytes]] = []

    @property
    def provisioning(self) -> list[Frame]:
        """The provisioning messages, opened. Grows with `update`."""
        return self._opener.provisioning

    @property
    def key_log(self) -> list[str]:
        """See `SessionOpener.key_log`."""
        return self._opener.key_log

    def update(self) -> VsockHistory:
        """Add what is new, and return this object."""
        chunks = self._laboratory.tap.chunks()
        # Entropy is read second: a key is drawn before its use, so the log now has all that the chunks need.
        with self._laboratory.entropy_log.open("rb") as stream:
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
    """Captures at every interface since its construction, and the traffic at the vsock point in that time.

    Args:
        laboratory: The laboratory whose interfaces are captured.
        history: The history of its vsock point.
        points: The capture points.
    """

    def __init__(
        self, laboratory: Watched, history: VsockHistory, points: Collection[Point] = frozenset(PACKET_POINTS)
    ) -> None:
        self.token = f"wgvsock-{secrets.token_hex(12)}"
        self._laboratory = laboratory
        self._history = history
        self._start = time.time()
        self._captures: dict[Point, PacketCapture] = {
            point: laboratory.capture(point) for point in Point if point in points
        }
        self._known_chunks = len(laboratory.tap.chunks())

    def close(self) -> None:
        """Stop capturing. What was captured stays."""
        for capture in self._captures.values():
            capture.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def packets(self, point: Point) -> list[CapturedPacket]:
        """Return everything seen at a point."""
        return self._captures[point].packets()

    def sightings(self, point: Point, *, to_port: int | None = None, from_port: int | None = None) -> list[Sighting]:
        """Return the packets with the token at one point, oldest first, of one direction by the server's port."""
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
        """Wait for the first sighting.

        Raises:
            LabTimeoutError: It did not come.
        """
        return deadline.poll(
            lambda: self.sightings(point, to_port=to_port, from_port=from_port), f"{self.token} at {point}"
        )[0]

    def in_order(self, *sightings: Sighting) -> bool:
        """Return whether each passed no earlier than the one before it, as far as the machines' clocks can tell."""
        pairs = itertools.pairwise(sightings)
        return all(after.time >= before.time - self._laboratory.clock_error for before, after in pairs)

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
        """Return what crossed the vsock point since the start."""
        return [frame for frame in self._history.update().frames if frame.time >= self._start]

    def opened_frames(self) -> list[tuple[Frame, bytes]]:
        """Return the transport data of that time with its plaintext as it was encrypted, including padding."""
        return [(frame, plain) for frame, plain in self._history.update().opened if frame.time >= self._start]

    def raw_vsock_bytes(self) -> bytes:
        """Return every byte of both directions since the start."""
        return b"".join(chunk.data for chunk in self._laboratory.tap.chunks()[self._known_chunks :])

    def request_was_carried(self, port: int) -> bool:
        """Return whether the token's request crossed the vsock point. Without it, a search there proves nothing."""
        return bool(self.sightings(Point.VSOCK, to_port=port))

    def readable_at_vsock(self) -> bool:
        """Return whether any part of the token can be read in the bytes at the vsock point."""
        raw, token = self.raw_vsock_bytes(), self.token.encode()
        return any(token[i : i + _READABLE_RUN] in raw for i in range(len(token) - _READABLE_RUN + 1))
