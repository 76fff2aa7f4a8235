"""The paper's two lifecycles as steps, each with what was seen at its point and whether it was as required."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from lab.topology import Point
from lab.watch.observation import Observation, Sighting

_TTL: Final = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a lifecycle."""

    number: int
    title: str
    point: Point
    seen: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """One exchange through the laboratory, followed from point to point.

    Attributes:
        direction: ``egress`` or ``ingress``.
        service_port: The port of the server that answers.
        enclave: The enclave's address.
        pod: The pod's address at eth0.
        external: The external machine's address.
        requests: The request at each point.
        replies: The reply at each point.
        vsock_bytes: Bytes that crossed the vsock point meanwhile.
        vsock_frames: WireGuard messages among them.
        readable: Whether any of the payload could be read there.
        rtt_ms: Round trip as the client measured it.
        padded: Length of the whole plaintext that was encrypted, in bytes.
    """

    direction: str
    service_port: int
    enclave: str
    pod: str
    external: str
    requests: dict[Point, Sighting]
    replies: dict[Point, Sighting]
    vsock_bytes: int
    vsock_frames: int
    readable: bool
    rtt_ms: float
    padded: int

    @classmethod
    def of(cls, observation: Observation, direction: str, port: int, rtt_ms: float, **addresses: str) -> Passage:
        """Collect what an observation has seen.

        Raises:
            LookupError: Request or reply is missing at a point.
        """
        requests, replies = {}, {}
        for point in Point:
            there = observation.sightings(point, to_port=port), observation.sightings(point, from_port=port)
            if not all(there):
                raise LookupError(f"nothing of the {direction} exchange was seen at {point}")
            requests[point], replies[point] = (sightings[0] for sightings in there)
        token = observation.token.encode()
        return cls(
            direction,
            port,
            requests=requests,
            replies=replies,
            vsock_bytes=len(observation.raw_vsock_bytes()),
            vsock_frames=len(observation.frames()),
            readable=observation.readable_at_vsock(),
            rtt_ms=rtt_ms,
            padded=next(len(plain) for _, plain in observation.opened_frames() if token in plain),
            **addresses,
        )

    @property
    def steps(self) -> list[Step]:
        """Return the steps of its direction."""
        return _egress(self) if self.direction == "egress" else _ingress(self)

    @property
    def ok(self) -> bool:
        """Return whether every step was as required."""
        return all(step.ok for step in self.steps)

    def report(self) -> dict[str, Any]:
        """Return it for JSON."""
        inside, outside = self.requests[Point.RELAY_WG0], self.requests[Point.RELAY_ETH0]
        before, after = (inside, outside) if self.direction == "egress" else (outside, inside)
        return {
            "ok": self.ok,
            "protocol": "udp",
            "request": {point.value: sighting.summary() for point, sighting in self.requests.items()},
            "reply": {point.value: sighting.summary() for point, sighting in self.replies.items()},
            "nat": {
                "before": {"source": before.source, "destination": before.destination},
                "after": {"source": after.source, "destination": after.destination},
            },
            "vsock": {
                "bytes": self.vsock_bytes,
                "frames": self.vsock_frames,
                "plaintext_found": self.readable,
            },
            "steps": [
                {"step": step.number, "title": step.title, "point": step.point.value, "seen": step.seen, "ok": step.ok}
                for step in self.steps
            ],
            "rtt_ms": self.rtt_ms,
        }


def _egress(passage: Passage) -> list[Step]:
    at = passage.requests
    inside, carried, arrived, outside, world = (
        at[Point.ENCLAVE_WG0],
        at[Point.VSOCK],
        at[Point.RELAY_WG0],
        at[Point.RELAY_ETH0],
        at[Point.EXTERNAL_ETH0],
    )
    reply = passage.replies[Point.ENCLAVE_WG0]
    return [
        Step(
            1,
            "the application's packet enters wg0",
            Point.ENCLAVE_WG0,
            _line(inside),
            bool(inside.outgoing)
            and (inside.source, inside.destination) == (passage.enclave, passage.external)
            and inside.ttl == _TTL
            and inside.checksums_right,
        ),
        Step(
            2,
            "encrypted with the session key",
            Point.VSOCK,
            _opening(inside, passage),
            carried.data == inside.data,
        ),
        Step(3, "sent over VSOCK", Point.VSOCK, _crossing(passage), not passage.readable),
        Step(
            4,
            "the Relay receives and decrypts",
            Point.RELAY_WG0,
            f"{len(arrived.data)} bytes, every one as it was sent",
            arrived.data == carried.data,
        ),
        Step(5, "injected into the pod's wg0", Point.RELAY_WG0, _line(arrived), arrived.outgoing is False),
        Step(
            6,
            "routed by the pod",
            Point.RELAY_ETH0,
            f"out of eth0, ttl {arrived.ttl} -> {outside.ttl}",
            bool(outside.outgoing) and outside.ttl == arrived.ttl - 1 and outside.destination == arrived.destination,
        ),
        Step(
            7,
            "MASQUERADE",
            Point.RELAY_ETH0,
            f"source {arrived.source} -> {outside.source}, payload untouched",
            (arrived.source, outside.source) == (passage.enclave, passage.pod)
            and outside.payload == arrived.payload
            and outside.checksums_right,
        ),
        Step(
            8,
            "out through eth0, and the reply comes back",
            Point.EXTERNAL_ETH0,
            f"{_line(world)}; back in the enclave after {passage.rtt_ms:.1f} ms",
            world.source == passage.pod
            and world.checksums_right
            and (reply.source, reply.destination) == (passage.external, passage.enclave)
            and reply.payload == inside.payload,
        ),
    ]


def _ingress(passage: Passage) -> list[Step]:
    at = passage.requests
    arriving, translated, carried, inside = (
        at[Point.RELAY_ETH0],
        at[Point.RELAY_WG0],
        at[Point.VSOCK],
        at[Point.ENCLAVE_WG0],
    )
    reply = passage.replies[Point.EXTERNAL_ETH0]
    return [
        Step(
            1,
            "a client's packet reaches the pod's eth0",
            Point.RELAY_ETH0,
            _line(arriving),
            arriving.outgoing is False
            and (arriving.source, arriving.destination) == (passage.external, passage.pod)
            and arriving.checksums_right,
        ),
        Step(
            2,
            "DNAT to the enclave",
            Point.RELAY_WG0,
            f"destination {arriving.destination} -> {translated.destination}; the client stays {translated.source}",
            (translated.source, translated.destination) == (passage.external, passage.enclave)
            and translated.payload == arriving.payload,
        ),
        Step(
            3,
            "the route says wg0",
            Point.RELAY_WG0,
            f"out of wg0, ttl {arriving.ttl} -> {translated.ttl}",
            bool(translated.outgoing) and translated.ttl == arriving.ttl - 1,
        ),
        Step(
            4,
            "the TUN hands it to the Relay",
            Point.RELAY_WG0,
            f"{len(translated.data)} bytes",
            translated.time <= carried.time,
        ),
        Step(
            5,
            "encrypted with the session key",
            Point.VSOCK,
            _opening(translated, passage),
            carried.data == translated.data,
        ),
        Step(6, "sent over VSOCK", Point.VSOCK, _crossing(passage), not passage.readable),
        Step(
            7,
            "the Enclave receives and decrypts",
            Point.ENCLAVE_WG0,
            f"{len(inside.data)} bytes, every one as it was sent",
            inside.data == carried.data,
        ),
        Step(8, "injected into the enclave's wg0", Point.ENCLAVE_WG0, _line(inside), inside.outgoing is False),
        Step(
            9,
            "the application answers, and the answer gets out",
            Point.EXTERNAL_ETH0,
            f"{_line(reply)}; back at the client after {passage.rtt_ms:.1f} ms",
            (reply.source, reply.destination) == (passage.pod, passage.external)
            and reply.checksums_right
            and reply.payload == arriving.payload,
        ),
    ]


def _line(sighting: Sighting) -> str:
    sport, dport = sighting.ports
    return f"{_host(sighting.source)}:{sport} -> {_host(sighting.destination)}:{dport}  ttl {sighting.ttl}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _opening(before: Sighting, passage: Passage) -> str:
    return f"{len(before.data)} bytes, {passage.padded} framed and padded; the lab's key log opens it: the same packet"


def _crossing(passage: Passage) -> str:
    found = "PLAINTEXT FOUND" if passage.readable else "nothing readable"
    return f"{passage.vsock_frames} messages, {passage.vsock_bytes} bytes both ways, {found}"
