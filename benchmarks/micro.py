"""Micro benchmarks: what each step of a packet costs on its own, and its share of the whole, without the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, Final

from wgvsock.framing import FrameDecoder, Framing, codec_for
from wgvsock.virtio_net import HEADER_LENGTH, check_header
from wgvsock.wireguard import Device, Peer, Profile
from wgvsock.wireguard.primitives import generate_private_key, public_key

SIZES: Final = (64, 1300, 65_000)
"""Bytes of payload: a small datagram, a full one, a super-packet."""

_SECONDS: Final = 0.15
"""Duration of one repetition."""

_REPETITIONS: Final = 3
"""The fastest counts: everything else is somebody else's work on this machine."""

_HEADERS: Final = 28  # IPv4 and UDP


def run() -> dict[str, Any]:
    """Microseconds of each step by packet size, and of a whole handshake."""
    return {"handshake_us": _handshake(), "packets": {str(size): _packet(size) for size in SIZES}}


def as_table(results: dict[str, Any]) -> str:
    """For people: microseconds and shares of the interpreter's part of one packet, both ends."""
    lines = [f"handshake, both ends: {results['handshake_us']:.0f} µs", "steps of one packet, µs (share)"]
    for size, steps in results["packets"].items():
        total = sum(steps.values())
        shown = "  ".join(f"{name} {cost:.2f} ({cost / total:.0%})" for name, cost in steps.items())
        lines.append(f"  {size:>5} B: {shown}  = {total:.2f}")
    return "\n".join(lines)


def _packet(size: int) -> dict[str, float]:
    sender, receiver, peer = _session()
    now = time.monotonic()
    packet = _udp_packet(size)
    length = len(packet)
    room = memoryview(bytearray(packet) + bytearray(16))
    datagram = memoryview(bytearray(length + 64))
    codec = codec_for(Framing.NATIVE)
    out = memoryview(bytearray(length + 64))

    sealed = [bytes(datagram[: peer.seal_into(room, length, datagram, now)]) for _ in range(4)]
    frame = memoryview(bytearray(4) + sealed[0])
    codec.write_header(frame, 0, len(sealed[0]))
    decoder = FrameDecoder(Framing.NATIVE)

    def decode() -> None:
        decoder.receive_buffer()[: len(frame)] = frame
        decoder.received(len(frame))

    # A datagram opens once: sealing and opening are timed together, and sealing is taken off.
    seal = _time(lambda: peer.seal_into(room, length, datagram, now))
    both = _time(lambda: receiver.open_into(datagram[: peer.seal_into(room, length, datagram, now)], "peer", out, now))
    return {
        "route": _time(lambda: sender.peer_for_packet(room)),
        "seal": seal,
        "frame": _time(lambda: codec.write_header(frame, 0, len(sealed[0]))),
        "deframe": _time(decode),
        "open": both - seal,
        "check": _time(lambda: check_header(room[:length])),
    }


def _handshake() -> float:
    return _time(_session, 0.5)


def _session() -> tuple[Device, Device, Peer]:
    """Two devices with a session in the gso profile."""
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


def _udp_packet(size: int) -> bytes:
    """A virtio-net header with an open checksum, as the kernel hands one over, and an IPv4 UDP packet."""
    length = size + _HEADERS
    header = bytes([1, 0, 0, 0, 0, 0, 20, 0, 6, 0])
    ip = bytes([0x45, 0]) + length.to_bytes(2, "big") + bytes([0, 1, 0, 0, 64, 17, 0, 0, 10, 73, 0, 2, 192, 0, 2, 2])
    return header + ip + bytes(size + 8)


def _time(step: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Microseconds of one call."""
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
