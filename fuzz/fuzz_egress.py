"""For any packets from the enclave's kernel and from the tunnel, the gate lets none out that no rule allows.

A packet that it lets out is complete, and its destination is named in a rule or has sent something before.

    python fuzz/fuzz_egress.py -max_total_time=60
"""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.egress"]):
    from wgvsock.egress.flows import IncomingFlows
    from wgvsock.egress.gate import MAX_DATAGRAMS, MAX_ECHOES, MAX_REFUSED, Gate
    from wgvsock.egress.policy import Policy
    from wgvsock.egress.settings import RuleSettings

NETWORKS = (ip_network("203.0.113.0/24"), ip_network("2001:db8::/64"))
POLICY = Policy(
    allows_by_default=False,
    allow=tuple(RuleSettings(network=network, protocol="any").rule(1, allows=True) for network in NETWORKS),
)
ENCLAVE4, ENCLAVE6 = bytes([198, 18, 73, 3]), ip_address("fddc:7f99:d74c::3").packed
HOSTS4 = [bytes([203, 0, 113, 7]), bytes([192, 0, 2, 7]), bytes([169, 254, 169, 254]), bytes([224, 0, 0, 22])]
HOSTS6 = [ip_address(host).packed for host in ("2001:db8::7", "2001:db9::7", "fd00:ec2::254", "ff02::2")]


def make_packet(data: atheris.FuzzedDataProvider, *, comes_in: bool) -> bytes:
    """Return a packet with some well-formed headers in front of arbitrary bytes."""
    payload = data.ConsumeBytes(data.ConsumeIntInRange(0, 60))
    length = len(payload) + data.PickValueInList([0, 0, 0, 0, 1, -1])
    protocol = data.PickValueInList([6, 17, 1, 58, 44, 43, 0, 60, 47, 4])
    if data.ConsumeBool():
        host = data.PickValueInList(HOSTS4)
        ends = host + ENCLAVE4 if comes_in else ENCLAVE4 + host
        first = data.PickValueInList([0x45, 0x45, 0x45, 0x46, 0x44])
        fragment = data.PickValueInList([0, 0, 0x4000, 0x2000, 1, 0x2001])
        header = bytes([first, 0]) + max(0, 20 + length).to_bytes(2, "big") + bytes(2) + fragment.to_bytes(2, "big")
        return header + bytes([64, protocol, 0, 0]) + ends + payload
    host = data.PickValueInList(HOSTS6)
    ends = host + ENCLAVE6 if comes_in else ENCLAVE6 + host
    return b"\x60\0\0\0" + max(0, length).to_bytes(2, "big") + bytes([protocol, 64]) + ends + payload


def ends_of(ip: bytes) -> tuple[bytes, bytes]:
    """Return source and destination, as every router reads them."""
    return (ip[12:16], ip[16:20]) if ip[0] >> 4 == 4 else (ip[8:24], ip[24:40])


def is_named(destination: bytes) -> bool:
    """Return whether a rule names the destination."""
    address = ip_address(destination)
    return any(address.version == network.version and address in network for network in NETWORKS)


def fuzz(raw: bytes) -> None:
    """Send some packets in either direction."""
    data = atheris.FuzzedDataProvider(raw)
    headroom = data.PickValueInList([0, 10])
    told: list[bytes] = []
    gate = Gate(POLICY, lambda packet: told.append(bytes(packet)), headroom)
    gate._incoming[17] = IncomingFlows(120.0, 4)  # noqa: SLF001 - a table that fills quickly
    heard: set[bytes] = set()
    for now in range(data.ConsumeIntInRange(1, 12)):
        comes_in = data.ConsumeBool()
        ip = data.ConsumeBytes(40) if data.ConsumeProbability() < 0.1 else make_packet(data, comes_in=comes_in)
        packet = memoryview(bytes(headroom) + ip)
        if comes_in:
            gate.hears(packet, now)
            if ip:
                heard.add(ends_of(ip)[0])
        elif gate.passes(packet, now):
            destination = ends_of(ip)[1]
            assert len(destination) in {4, 16}, ip.hex()
            assert is_named(destination) or destination in heard, ip.hex()
            assert ip[0] == 0x45 or ip[0] >> 4 == 6, ip.hex()
    assert all(answer[:headroom] == bytes(headroom) and answer[headroom] in {0x45, 0x60} for answer in told)
    snapshot = gate.snapshot()
    assert len(snapshot.refused) <= MAX_REFUSED
    assert len(gate._echoes) <= MAX_ECHOES  # noqa: SLF001
    assert len(gate._datagrams.keys) <= MAX_DATAGRAMS  # noqa: SLF001


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
