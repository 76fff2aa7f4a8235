"""A hostile peer with valid keys sends every kind of malformed virtio-net header, and the kernel sees none of them.

The honest end is a bare tunnel with a real TUN in a separate namespace. The hostile end is this process, which seals
anything. The kernel has to accept each packet that the check lets pass, so that the check is neither too permissive nor
a guess.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from benchmarks.endpoint import ALLOWED_IPS, private_key
from wgvsock.addresses import UnixAddress
from wgvsock.framing import FrameDecoder, Framing
from wgvsock.transports.sockets import connect_stream
from wgvsock.virtio_net import HEADER_LENGTH, ZERO_HEADER, HeaderFault, check_header
from wgvsock.wireguard import Device, Peer, Profile, seal_into
from wgvsock.wireguard.primitives import public_key

pytestmark = [pytest.mark.lab]

HONEST, HOSTILE, BEHIND = "10.73.0.2", "10.73.0.1", "198.18.0.2"
PACKETS: Final = 20_000
TCP, UDP, ICMP = 6, 17, 1


def checksum(data: bytes) -> int:
    """Ones' complement sum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(protocol: int, payload: bytes, destination: str = HONEST) -> bytes:
    """A correct IPv4 header around a payload from the hostile end."""
    addresses = bytes(int(part) for part in f"{HOSTILE}.{destination}".split("."))
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def tcp(size: int) -> bytes:
    """A TCP segment to a port on which nothing listens."""
    return struct.pack(">HHIIBBHHH", 4000, 4001, 1, 1, 0x50, 0x10, 1000, 0, 0) + bytes(size)


def udp(size: int) -> bytes:
    """A datagram to a port on which nothing listens."""
    return struct.pack(">HHHH", 4000, 4001, 8 + size, 0) + bytes(size)


def echo_request(number: int) -> bytes:
    """A ping."""
    body = struct.pack(">BBHHH", 8, 0, 0, 77, number)
    return ipv4(ICMP, body[:2] + checksum(body).to_bytes(2, "big") + body[4:])


BASES: Final = [
    echo_request(0),
    *(
        ipv4(protocol, payload, destination)
        for destination in (HONEST, BEHIND)
        for protocol, payload in ((TCP, tcp(3000)), (UDP, udp(3000)), (TCP, tcp(0)), (UDP, udp(64)))
    ),
]
INTERESTING: Final = [0, 1, 6, 8, 10, 16, 20, 28, 40, 1000, 1460, 3000, 3028, 3040, 3041, 0x7FFF, 0x8000, 0xFFFF]


def hostile_packet(draw: random.Random) -> bytes:
    """A header with mostly right and some wrong fields, before a packet that is sometimes damaged as well."""
    packet = bytearray(draw.choice(BASES))
    protocol = packet[9]
    gso_type = {TCP: 1, UDP: 5}.get(protocol, 0) if len(packet) > 1000 else 0
    size = len(packet) - 20 - (20 if protocol == TCP else 8)
    fields = [1, gso_type, 40 if gso_type else 0, min(1000, size) if gso_type else 0, 20, 16 if protocol == TCP else 6]
    for _ in range(draw.choice([0, 1, 1, 2, 6])):
        where = draw.randrange(6)
        limit = (16, 256, 65_536)[min(where, 2)]  # flags above 15 make it a plain packet, which has no header
        fields[where] = draw.choice([*INTERESTING, draw.randrange(limit)]) % limit
    if draw.random() < 0.1:
        packet[draw.choice([6, 7, 9, 32]) % len(packet)] = draw.randrange(256)  # fragment, protocol, data offset
    return struct.pack("<BBHHHH", *fields) + bytes(packet)


class HostilePeer:
    """Holds the relay's keys and seals without any check."""

    def __init__(self) -> None:
        self.device = Device(random=os.urandom, wall_clock=time.time_ns, packet_headroom=HEADER_LENGTH)
        now = time.monotonic()
        self.device.set_private_key(private_key("relay"), now)
        self.peer: Peer = self.device.add_peer(
            public_key(private_key("enclave")),
            allowed_ips=ALLOWED_IPS,
            endpoint="honest",
            profile=Profile.GSO,
            now=now,
        )
        self.received: list[bytes] = []
        self.news = asyncio.Event()

    async def connect(self, path: str) -> None:
        """Connect and complete a handshake."""
        self.loop = asyncio.get_running_loop()
        self.socket = await connect_stream(UnixAddress(path), deadline=self.loop.time() + 10)
        self.reading = self.loop.create_task(self.read())
        self.peer.initiate_handshake(time.monotonic())
        await self.flush()
        await self.until(lambda: self.peer.has_session(time.monotonic()))

    async def close(self) -> None:
        """Disconnect."""
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        self.socket.close()

    async def read(self) -> None:
        """Receive everything that comes back: answers, refusals, keepalives."""
        decoder = FrameDecoder(Framing.NATIVE)
        while length := await self.loop.sock_recv_into(self.socket, decoder.receive_buffer()):
            for datagram in decoder.received(length):
                self.device.receive_datagram(datagram, "honest", time.monotonic())
            self.received += [packet[HEADER_LENGTH:] for packet in self.device.packets_to_deliver()]
            await self.flush()
            self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to come back."""
        async with asyncio.timeout(20):
            while not condition():
                await self.news.wait()
                self.news.clear()

    async def flush(self) -> None:
        """Send what the core has to send."""
        for _, datagram in self.device.datagrams_to_send():
            await self.loop.sock_sendall(self.socket, len(datagram).to_bytes(4, "big") + datagram)

    async def send(self, packet: bytes) -> None:
        """Seal and send one packet with its header, without any check."""
        room = memoryview(bytearray(packet) + bytearray(16))
        sealed = memoryview(bytearray(len(packet) + 64))
        length = seal_into(self.peer, room, len(packet), sealed, time.monotonic())
        await self.loop.sock_sendall(self.socket, length.to_bytes(4, "big") + bytes(sealed[:length]))

    async def ping(self, number: int) -> None:
        """An honest echo request has to be answered."""
        answer = struct.pack(">HH", 77, number)
        self.received.clear()
        await self.send(ZERO_HEADER + echo_request(number))
        await self.until(lambda: any(p[9] == ICMP and p[20] == 0 and p[24:28] == answer for p in self.received))


class HonestEnd:
    """A bare tunnel in a temporary namespace, which forwards to a NIC that does not segment."""

    def __init__(self, stream: Path) -> None:
        command = (sys.executable, "-m", "benchmarks.endpoint", "enclave", "--listen", f"unix:{stream}")
        self.process = subprocess.Popen(
            ("unshare", "--net", *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def configure(self) -> None:
        """Give it addresses, and a destination to forward to."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{HONEST}/24", "dev", "wg0")
        self.run("ip", "link", "set", "wg0", "mtu", "1500", "up")
        self.run("ip", "link", "add", "nic0", "type", "veth", "peer", "name", "far0")
        self.run("ethtool", "-K", "nic0", "tso", "off", "gso", "off", "tx", "off")
        self.run("ip", "address", "add", "198.18.0.1/24", "dev", "nic0")
        for nic in ("nic0", "far0"):
            self.run("ip", "link", "set", nic, "up")
        self.run("ip", "neighbour", "add", BEHIND, "lladdr", "02:00:00:00:00:02", "dev", "nic0")
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def run(self, *command: str) -> str:
        """Run a command in its namespace."""
        entered = ("nsenter", f"--target={self.process.pid}", "--net", *command)
        return subprocess.run(entered, check=True, capture_output=True, text=True).stdout

    def counters(self, interface: str) -> dict[str, dict[str, int]]:
        """Return packets in and out, as the kernel counts them."""
        (link,) = json.loads(self.run("ip", "-json", "-statistics", "link", "show", interface))
        counters: dict[str, dict[str, int]] = link["stats64"]
        return counters

    def stop(self) -> dict[str, int]:
        """End it, and return what it dropped, by reason."""
        self.process.terminate()
        output, errors = self.process.communicate(timeout=20)
        assert not errors
        drops: dict[str, int] = json.loads(output.splitlines()[-1])
        return drops


@pytest.fixture
def honest(tmp_path: Path) -> Iterator[HonestEnd]:
    if os.geteuid() or not Path("/dev/net/tun").exists():
        pytest.skip("making an interface takes root and /dev/net/tun")
    end = HonestEnd(tmp_path / "stream")
    try:
        end.configure()
        yield end
    finally:
        end.process.kill()
        end.process.communicate()


def kernel_complaints() -> list[str]:
    """Return kernel messages about broken super-packets or worse."""
    log = subprocess.run(("dmesg",), capture_output=True, text=True, check=False).stdout
    return [line for line in log.splitlines() if re.search(r"WARNING|BUG|Oops|bad_offload|caps=\(|bad gso", line)]


def test_no_malformed_header_reaches_the_kernel_and_traffic_goes_on(honest: HonestEnd, tmp_path: Path) -> None:
    complaints = kernel_complaints()
    expected: Counter[str] = Counter()
    pings = 20

    async def attack() -> None:
        hostile = HostilePeer()
        await hostile.connect(str(tmp_path / "stream"))
        draw = random.Random(20261123)
        for number in range(PACKETS):
            packet = hostile_packet(draw)
            fault = check_header(memoryview(packet))
            expected[fault or "good"] += 1
            await hostile.send(packet)
            if number % (PACKETS // pings) == 0:
                await hostile.ping(number & 0xFFFF)
        await hostile.ping(PACKETS)  # an answer says that all before it has been dealt with
        await hostile.close()

    asyncio.run(attack())
    received = honest.counters("wg0")["rx"]
    forwarded = honest.counters("nic0")["tx"]["packets"]
    drops = honest.stop()

    assert kernel_complaints() == complaints
    good = expected.pop("good")
    assert set(expected) == {fault for fault in HeaderFault if fault is not HeaderFault.TRUNCATED}
    assert {reason: count for reason, count in drops.items() if reason.startswith("virtio_")} == expected
    # What passed the check, and the pings, the kernel has taken without an error, and it has cut what it forwarded.
    assert "kernel" not in drops
    assert received["packets"] == good + pings + 1
    assert received["errors"] == received["dropped"] == 0
    assert forwarded > good
