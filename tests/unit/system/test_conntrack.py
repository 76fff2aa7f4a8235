"""Which flows are marked liberal after an interruption, and how stale ones are listed and deleted."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import ClassVar, Self

import pytest

from tests.unit.system.tracked import DNS, ENCLAVE, POD, UDP_CLIENT, WANTED
from wgvsock.system import conntrack
from wgvsock.system.conntrack import (
    count_connections,
    delete_stale,
    forgive_interruption,
    liberal_change,
    parse_flow,
    performers,
    requests,
    table_size,
)
from wgvsock.system.errors import NetfilterError
from wgvsock.system.flows import DESTINATION_TRANSLATED, SOURCE_TRANSLATED, WantedFlows
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


OWN = tuple_of("10.73.0.1", "10.73.0.2"), tuple_of("10.73.0.2", "10.73.0.1")
"""The relay asks its enclave."""
ESTABLISHED, TIME_WAIT = 3, 7


def in_state(flow: bytes, state: int) -> bytes:
    return flow + attribute(0x8004, attribute(0x8001, attribute(1, bytes([state]))))


def test_connections_that_a_successor_waits_for(kernel: type[FakeKernel]) -> None:
    ways = (EGRESS, INGRESS, OTHER, UDP, OWN)
    kernel.flows = [in_state(flow(*way), state) for way in ways for state in (ESTABLISHED, TIME_WAIT)]
    assert count_connections(NETWORKS) == 2
    kernel.flows = [in_state(flow(*OWN), ESTABLISHED)]
    assert count_connections(NETWORKS) == 0  # reports are read for as long as the enclave runs
    kernel.flows = [b"\x02\0\0\0", b""]
    assert count_connections(NETWORKS) == 0


# Flows that contradict the rules.


def named(source: str, source_port: int, destination: str, destination_port: int, protocol: int = 17) -> bytes:
    first = 1 if ip_address(source).version == 4 else 3
    addresses = attribute(first, ip_address(source).packed) + attribute(first + 1, ip_address(destination).packed)
    ports = attribute(2, source_port.to_bytes(2, "big")) + attribute(3, destination_port.to_bytes(2, "big"))
    return attribute(0x8001, addresses) + attribute(0x8002, attribute(1, bytes([protocol])) + ports)


EARLY_NAME = named("198.51.100.10", 4000, "10.20.0.10", 53)
EARLY_BODY = (
    flow(EARLY_NAME, named("10.20.0.10", 53, "198.51.100.10", 4000))
    + attribute(3, (0x8).to_bytes(4, "big"))
    + attribute(12, b"iden")
)


def test_a_flow_as_the_kernel_tells_it() -> None:
    assert parse_flow(EARLY_BODY) == UDP_CLIENT._replace(status=8, name=EARLY_NAME, identity=b"iden")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        EARLY_BODY + attribute(18, b"\0\1"),
        flow(EARLY_NAME + attribute(3, b"\0\1"), EARLY_NAME),
        flow(EARLY_NAME, b""),
    ],
    ids=["empty", "a zone", "a zone of one direction", "no reply"],
)
def test_what_is_no_flow_of_ours_to_judge(body: bytes) -> None:
    assert parse_flow(body) is None


def test_stale_flows_are_deleted_by_name_and_identity(kernel: type[FakeKernel]) -> None:
    kernel.flows = [EARLY_BODY, flow(*EGRESS), b""]
    wanted = replace(WANTED, published=frozenset({DNS}))
    assert delete_stale(wanted) == {"early": 1}
    ((kind, body),) = kernel.changed
    assert (kind, body[0]) == (0x102, socket.AF_INET)
    assert list(attributes(body[4:])) == [(1, EARLY_NAME), (12, b"iden")]


def test_a_stale_flow_that_ended_meanwhile_is_not_counted(kernel: type[FakeKernel]) -> None:
    kernel.flows, kernel.vanished = [EARLY_BODY], {EARLY_NAME}
    assert not delete_stale(replace(WANTED, published=frozenset({DNS})))


def test_nothing_is_asked_where_nothing_is_wanted(kernel: type[FakeKernel]) -> None:
    kernel.refuses = True
    assert not delete_stale(WantedFlows())
    with pytest.raises(NetfilterError, match="connection tracking"):
        delete_stale(WANTED)


def chosen(body: bytes) -> tuple[int, dict[int, bytes]]:
    """The kernel's filter criteria, and the attributes of the request."""
    parts = dict(attributes(body[4:]))
    ((_, flags),) = attributes(parts[25])
    return int.from_bytes(flags, sys.byteorder), parts


def test_the_kernel_is_asked_for_one_port_that_is_not_translated() -> None:
    (body,) = requests(replace(WANTED, published=frozenset({DNS})))
    flags, parts = chosen(body)
    assert body[0] == socket.AF_INET
    assert flags == 0b101000  # protocol and destination port
    assert dict(attributes(dict(attributes(parts[1]))[2])) == {1: b"\x11", 3: b"\0\x35"}
    assert (parts[3], parts[26]) == (bytes(4), (0x20).to_bytes(4, "big"))


def test_many_ports_of_a_protocol_are_asked_for_at_once() -> None:
    many = frozenset(replace(DNS, port=port) for port in range(1, 18))
    (body,) = requests(replace(WANTED, published=many))
    assert chosen(body)[0] == 0b1000
    assert len(list(requests(replace(WANTED, published=frozenset(list(many)[:16]))))) == 16


def test_the_kernel_is_asked_for_the_enclave_s_end() -> None:
    (body,) = requests(WantedFlows(withdrawn=frozenset({DNS})))
    flags, parts = chosen(body)
    assert flags == 0b11001  # source, protocol and source port
    inside = dict(attributes(parts[2]))
    assert dict(attributes(inside[1])) == {1: ENCLAVE.packed}
    assert dict(attributes(inside[2])) == {1: b"\x11", 2: (5353).to_bytes(2, "big")}


def test_the_kernel_is_asked_for_both_directions_of_an_address_that_ended() -> None:
    reply, original = requests(WantedFlows(ended=frozenset({ENCLAVE})))
    for body, direction, bit in ((reply, 2, DESTINATION_TRANSLATED), (original, 1, SOURCE_TRANSLATED)):
        flags, parts = chosen(body)
        assert (body[0], flags) == (socket.AF_INET, 1)
        assert dict(attributes(dict(attributes(parts[direction]))[1])) == {1: ENCLAVE.packed}
        assert parts[3] == parts[26] == bit.to_bytes(4, "big")


def test_no_ipv6_address_is_filtered_by() -> None:
    """The kernel would list the flows of all others: its comparison is inverted."""
    six = replace(DNS, destination=ip_address("fd73::2"))
    wanted = WantedFlows(withdrawn=frozenset({six}), ended=frozenset({six.destination}))
    assert [(body[0], chosen(body)[0]) for body in requests(wanted)] == [
        (socket.AF_INET6, 0b11000),
        (socket.AF_INET6, 0),
        (socket.AF_INET6, 0),
    ]


def test_addresses_that_are_gone_are_looked_for_among_the_enclave_s_flows() -> None:
    assert not list(requests(WantedFlows(enclave=frozenset({ENCLAVE}))))
    (body,) = requests(WantedFlows(enclave=frozenset({ENCLAVE}), gone=frozenset({POD})))
    assert 1 in chosen(body)[1]


def test_the_undo_deletes_and_does_not_insist(kernel: type[FakeKernel], caplog: pytest.LogCaptureFixture) -> None:
    hidden = flow(named("10.73.0.2", 1, "198.51.100.10", 7), named("198.51.100.10", 7, "10.20.0.10", 1))
    kernel.flows = [hidden + attribute(3, (0x10).to_bytes(4, "big"))]

    async def delete(wanted: WantedFlows) -> None:
        delete_stale(wanted)

    async def undo() -> None:
        await performers(delete)["flows"]("10.73.0.2", None)

    asyncio.run(undo())
    assert {kind for kind, _ in kernel.changed} == {0x102}
    kernel.refuses = True
    asyncio.run(undo())
    assert "cannot use" in caplog.text


@pytest.mark.parametrize(("text", "size"), [("262144\n", 262_144), (None, None), ("?", None)])
def test_the_size_of_the_table(
    text: str | None, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nf_conntrack_max"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(conntrack, "_TABLE_SIZE", file)
    assert table_size() == size
