"""The relay's rules alone, in a separate network namespace: packets go into a TUN, and the rules count the outcomes.

Run as ``unshare --net python -m tests.e2e.egress_bench EXPERIMENT BACKEND …``. Prints one JSON value.

Another TUN is the uplink: outgoing packets are counted, and only the experiment answers.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from tests import egress_cases
from tests.egress_cases import CASES, ENCLAVE, SITE, raw
from wgvsock.addresses import IpAddress
from wgvsock.egress.policy import TCP, UDP, Packet
from wgvsock.relay.uplink.egress import Egress
from wgvsock.system.filter.apply import Netfilter, run_tool
from wgvsock.system.filter.rules import PublishedPort, Ruleset

_TUNSETIFF: Final = 0x400454CA
_TUN_NO_PI: Final = 0x1001

POD: Final = {4: ip_address("10.0.1.5"), 6: ip_address("2001:db8:1::5")}
WORLD: Final = {4: ip_address("203.0.113.1"), 6: ip_address("2001:db8:9::1")}

RULES: Final = Ruleset(
    owner="bench",
    tunnel="wg0",
    uplinks=((4, "eth0"), (6, "eth0")),
    sources=SITE.tunnels,
    resolvers=tuple(sorted(SITE.resolvers, key=str)),
    relay=(ip_address("198.18.73.2"), ip_address("fddc:7f99:d74c::2")),
    enclave=tuple(ENCLAVE.values()),
)

_SETUP: Final = """
ip link set lo up
ip addr add 10.0.1.5/24 dev eth0
ip addr add 2001:db8:1::5/64 dev eth0 nodad
ip link set eth0 up
ip addr add 198.18.73.2/31 dev wg0
ip addr add fddc:7f99:d74c::2/127 dev wg0 nodad
ip link set wg0 up
ip route add default dev eth0
ip -6 route add default dev eth0
"""

_SYSCTLS: Final = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/icmp_ratelimit": "0",  # each packet is asked about once
    "ipv6/icmp/ratelimit": "0",
}


class Bench:
    """A machine with rules.

    Args:
        backend: ``nft`` or ``iptables``.
    """

    def __init__(self, backend: str) -> None:
        self.tun, self.world = _tun("wg0"), _tun("eth0")
        for line in _SETUP.strip().splitlines():
            _run(line.split())
        for name, value in _SYSCTLS.items():
            (Path("/proc/sys/net") / name).write_text(value, encoding="ascii")
        self.egress = Egress(time.monotonic)
        self.netfilter = Netfilter(backend, "bench", lambda undo: undo, run_tool, self.egress.elements)
        self.egress.attach(self.netfilter)

    async def apply(self, rules: Ruleset) -> None:
        self.egress.adopt(rules.policy, SITE)
        await self.netfilter.apply(rules)

    def send(self, packet: bytes) -> None:
        os.write(self.tun, packet)

    def arrive(self, packet: bytes) -> None:
        """Send a packet from outside."""
        os.write(self.world, packet)

    def answer(self, seconds: float) -> tuple[bytes | None, float]:
        """Return the next packet for the enclave, and how long it took."""
        begin = time.monotonic()
        while True:
            left = begin + seconds - time.monotonic()
            ready, _, _ = select.select([self.tun], [], [], max(0.0, left))
            packet = os.read(self.tun, 65536) if ready else None
            if packet is None or not _is_chatter(packet):
                return packet, time.monotonic() - begin

    def left(self) -> list[bytes]:
        """Return what has left through the uplink since the last call."""
        found = []
        while True:
            try:
                found.append(os.read(self.world, 65536))
            except BlockingIOError:
                return found

    async def judged(self, packet: bytes, *, seconds: float = 0.0) -> dict[str, Any]:
        """Send a packet, and return what counted it, what was answered and what left."""
        before = (await self.netfilter.judged()).counts
        while self.answer(0)[0] is not None:
            pass
        self.left()
        self.send(packet)
        answer, took = self.answer(seconds)
        counts = (await self.netfilter.judged()).counts
        return {
            "by": sorted((counts - before).elements()),
            "answer": None if answer is None else kind_of(answer),
            "took": took,
            "left": len([one for one in self.left() if not _is_chatter(one)]),
        }


def _run(command: list[str], text: str = "") -> str:
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _TUN_NO_PI))
    return descriptor


def kind_of(packet: bytes) -> str:
    """Describe a packet that the enclave gets in a few words."""
    protocol, body = (packet[9], packet[20:]) if packet[0] >> 4 == 4 else (packet[6], packet[40:])
    if protocol == TCP:
        return "reset" if body[13] & 4 else "tcp"
    if protocol in {1, 58}:
        return {(3, 13): "prohibited", (1, 1): "prohibited", (0, 0): "pong", (129, 0): "pong"}.get(
            (body[0], body[1]), f"icmp {body[0]}/{body[1]}"
        )
    return f"protocol {protocol}"


def _is_chatter(packet: bytes) -> bool:
    """Return whether it is the kernel's own multicast: listener reports, router solicitations."""
    return packet[0] >> 4 == 6 and packet[24] == 0xFF


# Experiments.


async def table(backend: str, policy: str) -> list[dict[str, Any]]:
    """Every case of a policy."""
    bench = Bench(backend)
    await bench.apply(replace(RULES, policy=egress_cases.policy(policy)))
    bench.egress.inherit(egress_cases.pins(time.monotonic()).live(time.monotonic()))
    await bench.netfilter.pin([ip_address(one) for addresses in egress_cases.PINS.values() for one in addresses])
    found = []
    for number, case in enumerate(case for case in CASES if case.policy == policy):
        # Of what has no checksum that the kernel knows it says nothing.
        told = case.by == "relay ping" or (not case.allowed and case.packet.protocol in {TCP, UDP})
        result = await bench.judged(raw(case.packet, 20000 + number), seconds=1.0 if told else 0.0)
        found.append({"case": str(case), **result})
    return found


async def listed(backend: str) -> dict[str, Any]:
    """The record of denied destinations, and that its set is bounded."""
    bench = Bench(backend)
    await bench.apply(replace(RULES, policy=egress_cases.policy("closed")))
    for port in (443, 443, 80):
        bench.send(raw(Packet(WORLD[4], TCP, port), 20000 + port))
    bench.send(raw(Packet(WORLD[6], UDP, 53)))
    bench.send(raw(Packet(WORLD[4], 1, 8)))
    await bench.egress.look()
    first = [[one.address, one.protocol, one.port, one.count, one.by] for one in bench.egress.snapshot().denied]
    for number in range(3000):
        bench.send(raw(Packet(ip_address(0x0B000000 + number), TCP, 443)))
        bench.answer(0)
    most = len((await bench.netfilter.judged()).denied)
    counts = (await bench.netfilter.judged()).counts
    emptied = len((await bench.netfilter.judged()).denied)
    return {"first": sorted(first, key=str), "most": most, "emptied": emptied, "counts": dict(counts)}


async def pins(backend: str) -> dict[str, Any]:
    """An address ends with its pin, and flows that began under it continue. A renewed address stays valid."""
    bench = Bench(backend)
    await bench.apply(replace(RULES, policy=egress_cases.policy("names")))
    rule = bench.egress.policy.name_rules[0]
    packet = Packet(ip_address("203.0.113.10"), TCP, 443)
    until = [time.monotonic() + 1.5]

    def elements(policy: object, addresses: object, forgotten: object = ()) -> list[Any]:
        from wgvsock.system.filter.rules import Element

        return [Element(rule, packet.destination, until[0] - time.monotonic())]

    bench.netfilter._pinned = elements
    await bench.netfilter.pin([packet.destination])
    first = await bench.judged(raw(packet, 20001))
    until[0] = time.monotonic() + 1.5
    await asyncio.sleep(0.8)
    await bench.netfilter.pin([packet.destination])  # renewed half way
    until[0] = time.monotonic() + 1.5
    await bench.netfilter.pin([packet.destination])
    await asyncio.sleep(1.0)
    renewed = await bench.judged(raw(packet, 20002))
    intact = await bench.netfilter.is_intact()
    # Answers of the world make the first one an established flow.
    syn_ack = answer_to(raw(packet, 20001))
    bench.arrive(syn_ack)
    await asyncio.sleep(1.0)
    ended = await bench.judged(raw(packet, 20003), seconds=1.0)
    established = await bench.judged(acknowledgement(syn_ack))
    return {"first": first, "renewed": renewed, "ended": ended, "intact": intact, "established": established}


async def repair(backend: str) -> dict[str, Any]:
    """Another program flushes all rules, and a relay leaves its own to the next one."""
    rules = replace(RULES, policy=egress_cases.policy("names"))
    bench = Bench(backend)
    await bench.apply(rules)
    address = ip_address("203.0.113.10")
    await bench.egress.pin("www.lab.test", [(address, 60.0)])
    packet = Packet(address, TCP, 443)
    before = await bench.judged(raw(packet, 20001))
    _run(["nft", "flush", "ruleset"])
    gone = not await bench.netfilter.is_intact()
    await bench.apply(rules)
    after = await bench.judged(raw(packet, 20002))
    await bench.netfilter.apply(replace(rules, is_open=False, before=bench.egress.facts(time.time())))
    bench.egress.pins.keep(lambda _: False)
    bench.egress.recall((await bench.netfilter.facts()).own, time.time())
    await bench.apply(rules)
    restarted = await bench.judged(raw(packet, 20003))
    return {"before": before["by"], "gone": gone, "after": after["by"], "restarted": restarted["by"]}


async def killed(backend: str) -> dict[str, Any]:
    """A relay is killed, its open rules stay, and another one starts."""
    rules = replace(RULES, policy=egress_cases.policy("names"))
    bench = Bench(backend)
    await bench.apply(rules)
    address = ip_address("203.0.113.10")
    await bench.egress.pin("www.lab.test", [(address, 60.0)])
    known = await bench.netfilter.facts()
    bench.egress = Egress(time.monotonic)
    bench.netfilter = Netfilter(backend, "bench", lambda undo: undo, run_tool, bench.egress.elements)
    bench.egress.attach(bench.netfilter)
    bench.egress.adopt(rules.policy, SITE)
    bench.egress.recall(known.own, time.time(), known.pinned)
    await bench.netfilter.apply(replace(rules, is_open=False))  # as every relay begins
    await bench.apply(rules)
    packet = Packet(address, TCP, 443)
    return {
        "pinned": [[one.name, str(one.address), 60 <= one.seconds <= 91] for one in known.pinned],
        "by": (await bench.judged(raw(packet, 20001)))["by"],
    }


async def limits(backend: str) -> dict[str, Any]:
    """More flows than an enclave may have, and more per second than it may open."""
    bench = Bench(backend)
    await bench.apply(replace(RULES, max_new_flows=10_000, max_flows=20))
    many = Counter[str]()
    for port in range(60):
        many.update((await bench.judged(raw(Packet(WORLD[4], UDP, 443), 20000 + port), seconds=0))["by"])
    tracked = _tracked()
    await bench.apply(replace(RULES, max_new_flows=5, max_flows=20_000))
    for port in range(60):
        bench.send(raw(Packet(WORLD[4], TCP, 443), 30000 + port))
    counts = (await bench.netfilter.judged()).counts
    return {"many": dict(many), "tracked": tracked, "quick": dict(counts)}


def _tracked() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text(encoding="ascii"))


def answer_to(packet: bytes) -> bytes:
    """A SYN-ACK for a SYN, from its destination to the pod."""
    destination = IPv4Address(packet[16:20])
    source_port, port = struct.unpack("!HH", packet[20:24])
    body = struct.pack("!HHIIBBHHH", port, source_port, 7, 2, 5 << 4, 0x12, 1024, 0, 0)
    pseudo = destination.packed + POD[4].packed + struct.pack("!II", len(body), TCP)
    body = body[:16] + egress_cases._checksum(pseudo + body) + body[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, TCP, 0) + destination.packed + POD[4].packed
    return header[:10] + egress_cases._checksum(header) + header[12:] + body


def acknowledgement(syn_ack: bytes) -> bytes:
    """The enclave's reply to that."""
    world = IPv4Address(syn_ack[12:16])
    port, source_port = struct.unpack("!HH", syn_ack[20:24])
    body = struct.pack("!HHIIBBHHH", source_port, port, 2, 8, 5 << 4, 0x10, 1024, 0, 0)
    pseudo = ENCLAVE[4].packed + world.packed + struct.pack("!II", len(body), TCP)
    body = body[:16] + egress_cases._checksum(pseudo + body) + body[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, TCP, 0) + ENCLAVE[4].packed + world.packed
    return header[:10] + egress_cases._checksum(header) + header[12:] + body


async def errors(backend: str) -> dict[str, Any]:
    """ICMP errors from the enclave about the pod's flows, about those of others, and about the enclave's."""
    bench = Bench(backend)
    await bench.apply(
        replace(RULES, published=tuple(PublishedPort("udp", 5000, ENCLAVE[version], 5000) for version in (4, 6)))
    )
    found: dict[str, Any] = {}
    for version in (4, 6):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as pod:
            pod.bind((str(POD[version]), 4000))
            pod.sendto(b"x", (str(WORLD[version]), 443))  # a flow of the pod's own
            bench.left()
            forged = {
                f"into the pod {version}": (POD[version], raw_udp(POD[version], 4000, WORLD[version], 443)),
                f"to the world {version}": (WORLD[version], raw_udp(WORLD[version], 443, POD[version], 4000)),
            }
            for name, (target, inner) in forged.items():
                result = await bench.judged(too_big(ENCLAVE[version], target, inner))
                found[name] = [result["by"], result["left"], _mtu(WORLD[version])]
        # Its own flow: the world may know about a packet of it that was too big for the enclave.
        bench.send(raw(Packet(WORLD[version], UDP, 443), 4444))
        own = raw_udp(WORLD[version], 443, ENCLAVE[version], 4444)
        result = await bench.judged(too_big(ENCLAVE[version], WORLD[version], own))
        found[f"its own {version}"] = [result["by"], result["left"], _mtu(WORLD[version])]
    # Without rules the pod believes it: that what is looked at would change is a part of the proof.
    await bench.netfilter.remove()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod:
        pod.bind((str(POD[4]), 4000))
        bench.send(too_big(ENCLAVE[4], POD[4], raw_udp(POD[4], 4000, WORLD[4], 443)))
        found["without rules"] = _mtu(WORLD[4])
    return found


def raw_udp(source: IpAddress, source_port: int, destination: IpAddress, port: int) -> bytes:
    """A datagram of about 1200 bytes."""
    body = struct.pack("!HHHH", source_port, port, 8 + 1200, 0) + bytes(1200)
    if isinstance(source, IPv6Address):
        return struct.pack("!IHBB", 6 << 28, len(body), UDP, 64) + source.packed + destination.packed + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, 64, UDP, 0)
    header += source.packed + destination.packed
    return header[:10] + egress_cases._checksum(header) + header[12:] + body


def too_big(source: IpAddress, destination: IpAddress, inner: bytes) -> bytes:
    """An ICMP error that reports it, with an MTU of 1290 or 600."""
    if isinstance(source, IPv6Address):
        body = struct.pack("!BBHI", 2, 0, 0, 1290) + inner[:1100]
        pseudo = source.packed + destination.packed + struct.pack("!II", len(body), 58)
        body = body[:2] + egress_cases._checksum(pseudo + body) + body[4:]
        return struct.pack("!IHBB", 6 << 28, len(body), 58, 64) + source.packed + destination.packed + body
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 600) + inner[:520]
    body = body[:2] + egress_cases._checksum(body) + body[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 1, 0) + source.packed + destination.packed
    return header[:10] + egress_cases._checksum(header) + header[12:] + body


def _mtu(destination: IpAddress) -> str:
    """What the pod believes about the path."""
    words = _run(["ip", f"-{destination.version}", "route", "get", str(destination)]).split()
    return words[words.index("mtu") + 1] if "mtu" in words else ""


async def sources(backend: str) -> dict[str, Any]:
    """Packets from outside to a published port, from the tunnel's own addresses and from a client."""
    bench = Bench(backend)
    outside = ip_address("2001:db8:73::1")  # the relay's end, in no prefix of the enclave's
    _run(["ip", "addr", "add", f"{outside}/128", "dev", "wg0", "nodad"])
    published = tuple(PublishedPort("udp", 5000, ENCLAVE[version], 5000) for version in (4, 6))
    await bench.apply(replace(RULES, published=published, relay=(*RULES.relay, outside)))
    clients = [
        *(WORLD[4], WORLD[6], ip_address("169.254.1.1")),
        *(ip_address("198.18.73.2"), ip_address("fddc:7f99:d74c::2"), ENCLAVE[4], ENCLAVE[6], outside),
    ]
    found = {}
    for number, client in enumerate(clients):
        bench.arrive(raw_udp(client, 6000 + number, POD[client.version], 5000))
        got = bench.answer(0.3)[0]
        bench.left()
        if got is not None:
            bench.send(raw_udp(ENCLAVE[client.version], 5000, client, 6000 + number))
        found[str(client)] = [got is not None, len([one for one in bench.left() if not _is_chatter(one)])]
    return found


async def translated(backend: str) -> dict[str, Any]:
    """Service addresses that kube-proxy translates on this machine, before the relay's rules see their packets."""
    bench = Bench(backend)
    rules = """
        table ip kube {
            chain services {
                type nat hook prerouting priority dstnat; policy accept;
                ip daddr 10.100.0.10 meta l4proto { tcp, udp } th dport 53 dnat to 10.244.0.7:5353
                ip daddr 10.20.0.1 tcp dport 443 dnat to 10.244.0.8:6443
                ip daddr 10.30.0.1 udp dport 80 dnat to 169.254.169.254:80
            }
        }
    """
    _run(["nft", "-f", "-"], rules)
    await bench.apply(replace(RULES, policy=egress_cases.policy("networks")))
    packets = {
        "name server": Packet(ip_address("10.100.0.10"), UDP, 53),
        "service": Packet(ip_address("10.20.0.1"), TCP, 443),
        "metadata": Packet(ip_address("10.30.0.1"), UDP, 80),
        "endpoint": Packet(ip_address("10.244.0.8"), TCP, 6443),
    }
    return {name: (await bench.judged(raw(packet), seconds=0.2))["by"] for name, packet in packets.items()}


EXPERIMENTS: Final[dict[str, Callable[..., Coroutine[Any, Any, Any]]]] = {
    one.__name__: one for one in (table, listed, pins, repair, killed, limits, errors, sources, translated)
}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(EXPERIMENTS[sys.argv[1]](*sys.argv[2:]))))  # noqa: T201 - what it is for
