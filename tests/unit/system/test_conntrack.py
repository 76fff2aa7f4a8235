"""Which flows are marked liberal after an interruption, and how."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address, ip_network
from typing import ClassVar, Self

import pytest

from wgvsock.system import conntrack
from wgvsock.system.conntrack import forgive_interruption, liberal_change
from wgvsock.system.errors import NetfilterError
from wgvsock.system.rawnetlink import attribute, attributes

NETWORKS = (ip_network("10.73.0.0/24"), ip_network("fd73::/64"))


def tuple_of(source: str, destination: str, protocol: int = socket.IPPROTO_TCP) -> bytes:
    first = 1 if ip_address(source).version == 4 else 3
    addresses = attribute(first, ip_address(source).packed) + attribute(first + 1, ip_address(destination).packed)
    return attribute(0x8001, addresses) + attribute(0x8002, attribute(1, bytes([protocol])) + attribute(2, b"\1\2"))


def flow(original: bytes, reply: bytes, family: int = socket.AF_INET) -> bytes:
    return struct.pack("=BBH", family, 0, 0) + attribute(0x8001, original) + attribute(0x8002, reply)


EGRESS = tuple_of("10.73.0.2", "198.51.100.10"), tuple_of("198.51.100.10", "10.20.0.10")
INGRESS = tuple_of("198.51.100.10", "10.20.0.10"), tuple_of("10.73.0.2", "198.51.100.10")
EGRESS6 = tuple_of("fd73::2", "2001:db8::1"), tuple_of("2001:db8::1", "fd20::10")
OTHER = tuple_of("10.20.0.10", "10.0.0.1"), tuple_of("10.0.0.1", "10.20.0.10")
UDP = tuple_of("10.73.0.2", "10.0.0.1", 17), tuple_of("10.0.0.1", "10.20.0.10", 17)


class FakeKernel:
    """A `RawNetlink` with a table of flows."""

    flows: ClassVar[list[bytes]] = []
    changed: ClassVar[list[tuple[int, bytes]]] = []
    vanished: ClassVar[set[bytes]] = set()
    refuses = False

    def __init__(self, family: int) -> None:
        assert family == 12

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        assert kind == 0x101
        if self.refuses:
            raise PermissionError(1, "Operation not permitted")
        return self.flows

    def change(self, kind: int, body: bytes) -> None:
        original = dict(attributes(body[4:]))[1]
        if original in self.vanished:
            raise FileNotFoundError
        self.changed.append((kind, body))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[FakeKernel]:
    monkeypatch.setattr(conntrack, "RawNetlink", FakeKernel)
    FakeKernel.flows, FakeKernel.changed, FakeKernel.vanished, FakeKernel.refuses = [], [], set(), False
    return FakeKernel


def test_tcp_flows_of_the_enclave_and_no_others(kernel: type[FakeKernel]) -> None:
    kernel.flows = [flow(*EGRESS), flow(*OTHER), flow(*UDP), flow(*INGRESS), flow(*EGRESS6, socket.AF_INET6)]
    assert forgive_interruption(NETWORKS) == 3
    named = [(body[0], dict(attributes(body[4:]))[1]) for kind, body in kernel.changed if kind == 0x100]
    assert named == [(socket.AF_INET, EGRESS[0]), (socket.AF_INET, INGRESS[0]), (socket.AF_INET6, EGRESS6[0])]


def test_both_directions_are_liberal() -> None:
    parts = dict(attributes(liberal_change(socket.AF_INET, EGRESS[0])[4:]))
    (tcp,) = (value for _, value in attributes(parts[4]))
    assert list(attributes(tcp)) == [(4, b"\x08\x08"), (5, b"\x08\x08")]


def test_a_flow_that_ended_meanwhile_is_no_error(kernel: type[FakeKernel]) -> None:
    kernel.flows = [flow(*EGRESS), flow(*INGRESS)]
    kernel.vanished = {EGRESS[0]}
    assert forgive_interruption(NETWORKS) == 2
    assert len(kernel.changed) == 1


def test_an_entry_without_tuples_is_passed_over(kernel: type[FakeKernel]) -> None:
    kernel.flows = [b"\x02\0\0\0", b""]
    assert forgive_interruption(NETWORKS) == 0


def test_a_refusal(kernel: type[FakeKernel]) -> None:
    kernel.refuses = True
    with pytest.raises(NetfilterError) as caught:
        forgive_interruption(NETWORKS)
    assert caught.value.why == "Operation not permitted"
