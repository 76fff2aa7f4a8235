"""More series for `benchmarks.growth`: flows under a policy, and the cost of a scrape of many enclaves."""

from __future__ import annotations

import json
import struct
from ipaddress import IPv4Address, ip_network
from typing import Final

from benchmarks.series import Series, fastest, series
from wgvsock.egress.gate import Gate
from wgvsock.egress.policy import Policy, Rule
from wgvsock.relay.snapshots import EnclaveSnapshot, Readiness, RelaySnapshot, State
from wgvsock.relay.status import relay_status
from wgvsock.telemetry.status import metrics, wireguard_status
from wgvsock.tunnel.tunnel import TunnelDrop
from wgvsock.wireguard import Device, DropReason

FLOWS: Final = (1, 10, 100, 1_000, 10_000)
ENCLAVES: Final = (1, 10, 100, 1_000)

_PACKETS: Final = 4_000


def datagram(number: int) -> memoryview:
    """Return an IPv4 UDP datagram to one server. The number selects its flow."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 17, 0, _HERE.packed, _SERVER.packed)
    return memoryview(bytearray(header + struct.pack("!HHHH8x", 1024 + number % 60_000, 53, 16, 0)))


_HERE: Final = IPv4Address("10.0.0.2")
_SERVER: Final = IPv4Address("192.0.2.1")


def gate() -> Gate:
    """Return a gate that passes only datagrams to the server."""
    rule = Rule(allows=True, position=1, protocols=frozenset({"udp"}), network=ip_network(f"{_SERVER}/32"))
    return Gate(Policy(allows_by_default=False, allow=(rule,)), lambda _: None)


def flows() -> list[Series]:
    """Measure the verdict on a packet under a measured policy, by the number of flows."""
    return [series("UDP flows: a packet of one of them, µs", FLOWS, _judging)]


def _judging(count: int) -> float:
    judge, packets = gate(), [datagram(number) for number in range(count)]
    asked = [packets[number * 7919 % count] for number in range(_PACKETS)]

    def step() -> None:
        for packet in asked:
            if not judge.passes(packet, 1.0):
                raise RuntimeError("a datagram was refused")

    step()
    return fastest(step, _PACKETS)


def relay_of(count: int, device: Device) -> RelaySnapshot:
    """Return a ready relay with this many enclaves, each with drops for every reason."""
    dropped = {reason.value: 12_345 for reason in (*DropReason, *TunnelDrop)}
    wireguard = wireguard_status(device, "wg0", 1.0)
    enclaves = (
        EnclaveSnapshot(
            name=f"enclave{number}",
            state=State.READY,
            readiness=Readiness(attested=True, handshake=True, rules=True, uplink=True),
            address="vsock:16:51820",
            launched=None,
            attestation=None,
            root_is_aws=True,
            debug_allowed=False,
            attempts={"ok": 3, "failed": 1, "rejected": 0},
            next_attestation=12.34,
            trusted_for=56.78,
            error=None,
            wireguard=wireguard,
            counters={"dropped": dropped, "offloads": True},
            uplink=None,
        )
        for number in range(count)
    )
    return RelaySnapshot("relay", 7, State.READY, tuple(enclaves))


def scrapes(device: Device) -> list[Series]:
    """Measure one scrape and one status, by the number of enclaves.

    Args:
        device: The device of every enclave, with its only peer.
    """

    def scrape(count: int) -> float:
        relay = relay_of(count, device)
        return fastest(lambda: metrics(relay_status(relay)), 1) / 1e3

    def status(count: int) -> float:
        relay = relay_of(count, device)
        return fastest(lambda: json.dumps(relay_status(relay)), 1) / 1e3

    return [series("enclaves: a scrape, ms", ENCLAVES, scrape), series("enclaves: a status, ms", ENCLAVES, status)]
