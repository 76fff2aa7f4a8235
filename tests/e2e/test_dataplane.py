"""Bulk data, many connections and super-packets of every kind through the data plane, with bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lab.guest.command import alone
from lab.ladder import Ladder
from lab.topology import Node

pytestmark = [pytest.mark.lab, pytest.mark.slow]

UDP_SEGMENTS = alone("udp_segments")
GIBIBYTE = 1 << 30
_EMULATED = 3.0  # times as slow as this machine
_LONGEST_PLAIN = 1500 + 16 + 32  # bytes: MTU, padding, header and tag; slow senders make super-packets of two segments
MEMORY_LIMIT = 120
"""MiB of the largest resident set of either process."""

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
SENDERS = pytest.mark.parametrize("sender", [Node.ENCLAVE, Node.EXTERNAL], ids=["up", "down"])
NIC_OFFLOADS = (
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "tx-checksumming",
)


@pytest.fixture(scope="module")
def bulk_tunnel(network: Ladder) -> Iterator[Ladder]:
    """A new tunnel whose vsock point records nothing, because a bulk transfer would fill the disk."""
    network.clear()
    network.backend.tap.record(on=False)
    network.raise_tunnel()
    yield network
    network.clear()
    network.backend.tap.record(on=True)


@pytest.fixture
def uplink_without_offloads(bulk_tunnel: Ladder) -> Iterator[Ladder]:
    """The same with a NIC that does not segment, merge or compute checksums."""

    def switch(states: dict[str, str]) -> None:
        settings = [word for setting in states.items() for word in setting]
        bulk_tunnel.backend.run(Node.POD, ["ethtool", "-K", "eth0", *settings]).check()

    features = bulk_tunnel.backend.run(Node.POD, ["ethtool", "-k", "eth0"]).check().stdout.decode()
    before = dict(re.findall(r"^([\w-]+): (on|off)", features, re.MULTILINE))
    switch(dict.fromkeys(NIC_OFFLOADS, "off"))
    yield bulk_tunnel
    switch({name: before[name] for name in NIC_OFFLOADS})  # another test has reason to look at checksums


def affordable(lab: Ladder, size: int, *, emulated: int) -> int:
    """Return this many bytes, or fewer where processors are emulated."""
    return size if lab.backend.scale < _EMULATED else emulated


@SENDERS
def test_a_gibibyte_has_the_same_hash_at_both_ends(bulk_tunnel: Ladder, sender: Node) -> None:
    bulk_tunnel.carry(sender, size=affordable(bulk_tunnel, GIBIBYTE, emulated=GIBIBYTE >> 6))


@SENDERS
def test_two_hundred_connections_at_once(bulk_tunnel: Ladder, sender: Node) -> None:
    bulk_tunnel.carry(sender, size=affordable(bulk_tunnel, 200 << 18, emulated=200 << 14), streams=200)


def test_memory_stays_bounded_through_all_of_it(bulk_tunnel: Ladder) -> None:
    assert bulk_tunnel.peak_memory(Node.POD) < MEMORY_LIMIT
    assert bulk_tunnel.peak_memory(Node.ENCLAVE) < MEMORY_LIMIT


def test_super_packets_were_in_use(bulk_tunnel: Ladder) -> None:
    def peer() -> dict[str, Any]:
        (only,) = bulk_tunnel.relay_status()["wireguard"]["peers"]
        return dict(only)

    assert bulk_tunnel.relay_status()["counters"]["offloads"]
    before = peer()
    bulk_tunnel.carry(Node.ENCLAVE, size=affordable(bulk_tunnel, 64 << 20, emulated=4 << 20))
    after = peer()
    assert after["profile"] == "gso"
    carried, packets = (after[name] - before[name] for name in ("rx_bytes", "rx_packets"))
    assert carried / packets > _LONGEST_PLAIN, "packets longer than the MTU came through the tunnel"


@FAMILIES
@SENDERS
def test_bulk_through_a_nic_without_offloads(uplink_without_offloads: Ladder, sender: Node, family: int) -> None:
    size = affordable(uplink_without_offloads, 64 << 20, emulated=4 << 20)
    uplink_without_offloads.carry(sender, size=size, family=family)


@FAMILIES
def test_a_segmented_datagram_arrives_as_its_datagrams(bulk_tunnel: Ladder, family: int) -> None:
    external = str(getattr(bulk_tunnel.topology, f"external{family}"))
    done = bulk_tunnel.backend.run(Node.ENCLAVE, [*UDP_SEGMENTS, external, "7", "40", "1200"])
    assert json.loads(done.check().stdout) == {"answered": 40, "strange": 0}


@FAMILIES
def test_a_segmented_datagram_through_a_nic_without_offloads(uplink_without_offloads: Ladder, family: int) -> None:
    external = str(getattr(uplink_without_offloads.topology, f"external{family}"))
    done = uplink_without_offloads.backend.run(Node.ENCLAVE, [*UDP_SEGMENTS, external, "7", "40", "1200"])
    assert json.loads(done.check().stdout) == {"answered": 40, "strange": 0}
