"""One end of a bare tunnel for the benchmarks: TUN, core and stream, without provisioning.

    python -m benchmarks.endpoint relay   --interface wg0 --dial unix:/tmp/x.sock --profile gso
    python -m benchmarks.endpoint enclave --interface wg0 --listen unix:/tmp/x.sock --profile gso

The keys are fixed and public: nothing but measurements may pass through such a tunnel.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from ipaddress import ip_network

from wgvsock.addresses import parse_stream_address
from wgvsock.devices.tun import open_tun
from wgvsock.framing import Framing
from wgvsock.system import event_loop, memory
from wgvsock.transports.stream import StreamTransport
from wgvsock.tunnel.tunnel import Tunnel, TunnelStatistics
from wgvsock.virtio_net import HEADER_LENGTH
from wgvsock.wireguard import Device, Event, HandshakeCompleted, Profile
from wgvsock.wireguard.primitives import public_key

ROLES = {"relay": "enclave", "enclave": "relay"}
ALLOWED_IPS = tuple(ip_network(text) for text in ("0.0.0.0/0", "::/0"))


def private_key(role: str) -> bytes:
    """A fixed key for each role."""
    return hashlib.sha256(f"wgvsock benchmark, {role}".encode()).digest()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endpoint", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--interface", default="wg0")
    parser.add_argument("--dial", help="stream address of the other end")
    parser.add_argument("--listen", help="stream address to accept on")
    parser.add_argument("--profile", choices=[profile.name.lower() for profile in Profile], default="gso")
    parser.add_argument("--framing", choices=list(Framing), default=Framing.NATIVE)
    return parser.parse_args()


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def drops(statistics: TunnelStatistics) -> dict[str, int]:
    """What was dropped, by reason."""
    counts = {reason.value: count for reason, count in statistics.device.drops.items()}
    return counts | {
        **statistics.device.virtio_header_drops,
        "unreachable": statistics.dropped_unreachable,
        "backlog": statistics.dropped_backlog,
        "offloaded": statistics.dropped_offloaded,
        "kernel": statistics.dropped_by_kernel,
    }


async def run(arguments: argparse.Namespace) -> None:
    """Carry packets until SIGTERM or SIGINT. Says ``ready``, ``up`` at each handshake, and in the end its drops."""
    profile = Profile[arguments.profile.upper()]
    tun = open_tun(arguments.interface, packet_headroom=HEADER_LENGTH if profile is Profile.GSO else 0)
    device = Device(random=os.urandom, wall_clock=time.time_ns, packet_headroom=tun.packet_headroom)
    now = time.monotonic()
    device.set_private_key(private_key(arguments.role), now)
    device.add_peer(
        public_key(private_key(ROLES[arguments.role])),
        allowed_ips=ALLOWED_IPS,
        endpoint=parse_stream_address(arguments.dial) if arguments.dial else None,
        profile=profile,
        now=now,
    )
    listen = [parse_stream_address(arguments.listen)] if arguments.listen else []
    transport = StreamTransport(listen=listen, framing=Framing(arguments.framing))

    def report(event: Event) -> None:
        if isinstance(event, HandshakeCompleted):
            say("up")

    async with Tunnel(device, tun, transport, on_event=report) as tunnel:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: loop.create_task(tunnel.aclose()))
        memory.settle()
        say("ready")
        await tunnel.wait_ended()
        say(json.dumps(drops(tunnel.statistics())))


if __name__ == "__main__":
    event_loop.run(run(parse_arguments()))
