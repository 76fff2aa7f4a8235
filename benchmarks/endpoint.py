"""One end of a bare tunnel for the benchmarks: TUN, core and stream, without provisioning.

    python -m benchmarks.endpoint relay   --interface wg0 --dial unix:/tmp/x.sock --profile gso
    python -m benchmarks.endpoint enclave --interface wg0 --listen unix:/tmp/x.sock --profile gso

The keys are fixed and public: use such a tunnel for measurements only.
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
from ipaddress import ip_address, ip_network

from benchmarks.network import ENCLAVE_ADDRESS, RELAY_ADDRESS
from wgvsock.addresses import parse_stream_address
from wgvsock.devices.base import TunDevice
from wgvsock.devices.tun import open_tun
from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Policy
from wgvsock.framing import Framing
from wgvsock.machine.relay import LinuxRelayMachine
from wgvsock.relay.uplink.engine import EngineProcess
from wgvsock.relay.uplink.mouth import Mouth
from wgvsock.runtime import event_loop, memory
from wgvsock.transports.stream import StreamTransport
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.uplink.orders import Begin, Publish
from wgvsock.virtio_net import HEADER_LENGTH
from wgvsock.wireguard import Device, Event, HandshakeCompleted, Profile
from wgvsock.wireguard.primitives import public_key

ROLES = {"relay": "enclave", "enclave": "relay"}
ENCLAVE, GATEWAY = (ip_address(ENCLAVE_ADDRESS),), (ip_address(RELAY_ADDRESS),)
ALLOWED_IPS = tuple(ip_network(text) for text in ("0.0.0.0/0", "::/0"))


def private_key(role: str) -> bytes:
    """Return the fixed key of a role."""
    return hashlib.sha256(f"wgvsock benchmark, {role}".encode()).digest()


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endpoint", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--interface", default="wg0")
    parser.add_argument("--dial", help="stream address of the other end")
    parser.add_argument("--listen", help="stream address to accept on")
    parser.add_argument("--profile", choices=[profile.name.lower() for profile in Profile], default="gso")
    parser.add_argument("--userspace", action="store_true", help="end in the user-space uplink's engine, not in a TUN")
    parser.add_argument("--framing", choices=list(Framing), default=Framing.NATIVE)
    parser.add_argument("--busy-poll-us", type=int, default=0, help="busy-poll for this long before sleeping")
    parser.add_argument("--max-send", type=int, help="limit of one send in bytes, as vsock has one")
    return parser.parse_args()


def say(line: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def run(arguments: argparse.Namespace) -> None:
    """Carry packets until SIGTERM or SIGINT. Prints ``ready``, ``up`` at each handshake, and finally its drops."""
    profile = Profile[arguments.profile.upper()]
    headroom = HEADER_LENGTH if profile is Profile.GSO else 0
    if arguments.userspace:
        await _run(arguments, profile, await _with_engine(headroom))
    else:
        await _run(arguments, profile, open_tun(arguments.interface, packet_headroom=headroom))


async def _with_engine(headroom: int) -> Mouth:
    """Return a relay's uplink without interface, open to everything. Prints ``engine`` and the process ID."""
    mouth = Mouth(headroom, time.monotonic)
    engine = EngineProcess(LinuxRelayMachine(), mouth.engine, mouth.drain, lambda: 0.0)
    await engine.start(Begin(ENCLAVE, GATEWAY, max_connections=4096), Publish())
    mouth.open(Gate(Policy(), lambda _: None, headroom))
    say(f"engine {engine.snapshot(4096).pid}")
    return mouth


async def _run(arguments: argparse.Namespace, profile: Profile, tun: TunDevice) -> None:
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
            link = transport.link_for(event.peer.endpoint)
            if arguments.max_send and link is not None:
                link.max_send = arguments.max_send
            say("up")

    async with Tunnel(device, tun, transport, on_event=report) as tunnel:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: loop.create_task(tunnel.aclose()))
        memory.settle()
        say("ready")
        await tunnel.wait_ended()
        say(json.dumps(tunnel.statistics().drops))


if __name__ == "__main__":
    arguments = parse_arguments()
    event_loop.run(run(arguments), busy_poll=arguments.busy_poll_us / 1e6)
