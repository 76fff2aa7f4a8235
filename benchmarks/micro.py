"""Micro benchmarks: the cost of each step of a packet, and its share of the total, without the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, Final

from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Policy
from wgvsock.egress.settings import RuleSettings
from wgvsock.framing import FrameDecoder, Framing, codec_for
from wgvsock.virtio_net import HEADER_LENGTH, check_header
from wgvsock.wireguard import Device, Peer, Profile, open_into, peer_for_packet, seal_into
from wgvsock.wireguard.primitives import generate_private_key, public_key

SIZES: Final = (64, 1300, 65_000)
"""Payload in bytes: a small datagram, a full one, a super-packet."""

_SECONDS: Final = 0.15
"""Duration of one repetition, in seconds."""

_REPETITIONS: Final = 3
"""Number of repetitions. The fastest counts, because slower ones include other work on this machine."""

_HEADERS: Final = 28  # IPv4 and UDP


def run() -> dict[str, Any]:
    """Measure each step by packet size, and a complete handshake, in microseconds."""
    return {
        "handshake_us": _handshake(),
        "packets": {str(size): _packet(size) for size in SIZES},
        "gate": {str(size): _gate(size) for size in SIZES},
    }


def as_table(results: dict[str, Any]) -> str:
    """Return the report for people: microseconds per step, and its share of one packet's total at both ends."""
    lines = [f"handshake, both ends: {results['handshake_us']:.0f} µs", "steps of one packet, µs (share)"]
    for size, steps in results["packets"].items():
        total = sum(steps.values())
        shown = "  ".join(f"{name} {cost:.2f} ({cost / total:.0%})" for name, cost in steps.items())
        lines.append(f"  {size:>5} B: {shown}  = {total:.2f}")
    lines.append("added per packet by an egress policy in the image, µs")
    for size, steps in results["gate"].items():
        shown = "  ".join(f"{name} {cost:.2f}" for name, cost in steps.items())
        lines.append(f"  {size:>5} B: {shown}")
    return "\n".join(lines)


def _gate(size: int) -> dict[str, float]:
    """Measure each kind of packet at the gate of a policy with some rules. Without a policy there is no gate."""
    policy = Policy(
        allows_by_default=False,
        allow=tuple(
            RuleSettings(network=ip_network(f"192.0.{n}.0/24"), protocol="any").rule(n, allows=True) for n in (1, 2)
        ),
    )
    gate = Gate(policy, bytes, HEADER_LENGTH)
    packet = memoryview(_udp_packet(size))
    reply = memoryview(_udp_packet(size, outwards=False))
    refused = memoryview(_udp_packet(size).replace(bytes([192, 0, 2, 2]), bytes([198, 51, 100, 2])))
    published = Gate(policy, bytes, HEADER_LENGTH)
    published.hears(reply, 0.0)
    if not gate.passes(packet, 0.0) or gate.passes(refused, 0.0) or not published.passes(packet, 0.0):
        raise RuntimeError("the gate judges otherwise")
    return {
        "known flow": _time(lambda: gate.passes(packet, 0.0)),
        "its answer": _time(lambda: gate.hears(reply, 0.0)),
        "from outside": _time(lambda: published.hears(reply, 0.0)),
        "first packet": _time(lambda: gate._judge(packet[HEADER_LENGTH:], 0.0)),  # noqa: SLF001 - else the flow is known
        "refused, told": _time(lambda: gate.passes(refused, 0.0)),
    }


def _packet(size: int) -> dict[str, float]:
    sender, receiver, peer = _session()
    now = time.monotonic()
    packet = _udp_packet(size)
    length = len(packet)
    room = memoryview(bytearray(packet) + bytearray(16))
    datagram = memoryview(bytearray(length + 64))
    codec = codec_for(Framing.NATIVE)
    out = memoryview(bytearray(length + 64))

    sealed = [bytes(datagram[: seal_into(peer, room, length, datagram, now)]) for _ in range(4)]
    frame = memoryview(bytearray(4) + sealed[0])
    codec.write_header(frame, 0, len(sealed[0]))
    decoder = FrameDecoder(Framing.NATIVE)

    def decode() -> None:
        decoder.receive_buffer()[: len(frame)] = frame
        decoder.received(len(frame))

    # A datagram opens only once, so sealing and opening are timed together, and the sealing time is subtracted.
    seal = _time(lambda: seal_into(peer, room, length, datagram, now))
    both = _time(
        lambda: open_into(receiver, datagram[: seal_into(peer, room, length, datagram, now)], "peer", out, now)
    )
    return {
        "route": _time(lambda: peer_for_packet(sender, room)),
        "seal": seal,
        "frame": _time(lambda: codec.write_header(frame, 0, len(sealed[0]))),
        "deframe": _time(decode),
        "open": both - seal,
        "check": _time(lambda: check_header(room[:length])),
    }


def _handshake() -> float:
    return _time(_session, 0.5)


def _session() -> tuple[Device, Device, Peer]:
    """Return two devices with a session in the gso profile."""
    devices = [Device(random=os.urandom, wall_clock=time.time_ns, packet_headroom=HEADER_LENGTH) for _ in range(2)]
    keys = [generate_private_key(os.urandom) for _ in devices]
    now = time.monotonic()
    for index, device in enumerate(devices):
        device.set_private_key(keys[index], now)
        device.add_peer(
            public_key(keys[1 - index]),
            allowed_ips=[ip_network("0.0.0.0/0")],
            endpoint="peer",
            profile=Profile.GSO,
            now=now,
        )
    peer = next(iter(devices[0].peers.values()))
    peer.initiate_handshake(now)
    for here, there in ((0, 1), (1, 0), (0, 1)):
        for _, datagram in devices[here].datagrams_to_send():
            devices[there].receive_datagram(datagram, "peer", now)
    if not peer.has_session(now):
        raise RuntimeError("the handshake did not complete")
    return devices[0], devices[1], peer


def _udp_packet(size: int, *, outwards: bool = True) -> bytes:
    """Return a virtio-net header with an incomplete checksum, as from the kernel, and an IPv4 UDP packet."""
    length = size + _HEADERS
    header = bytes([1, 0, 0, 0, 0, 0, 20, 0, 6, 0])
    enclave, world = bytes([10, 73, 0, 2]), bytes([192, 0, 2, 2])
    ip = bytes([0x45, 0]) + length.to_bytes(2, "big") + bytes([0, 1, 0, 0, 64, 17, 0, 0])
    return header + ip + (enclave + world if outwards else world + enclave) + bytes(size + 8)


def _time(step: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Return the time of one call in microseconds."""
    started = time.perf_counter()
    step()
    calls = max(1, int(seconds / max(1e-7, time.perf_counter() - started)))
    best = float("inf")
    for _ in range(_REPETITIONS):
        started = time.process_time()
        for _ in range(calls):
            step()
        best = min(best, (time.process_time() - started) / calls)
    return best * 1e6
