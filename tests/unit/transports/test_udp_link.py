"""Remotes of the UDP transport, and the source address of answers to them."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests.unit.transports.udp_kernel import REMOTE, REMOTE6, FakeRoutes, Kernel, heard, put, started
from wgvsock.addresses import Port, UdpAddress
from wgvsock.transports.udp_link import UdpLink


@pytest.mark.asyncio
async def test_links_of_one_remote_are_equal(kernel: Kernel) -> None:
    transport, _ = await started()
    one, same, other = UdpLink(transport, ("a", 1)), UdpLink(transport, ("a", 1)), UdpLink(transport, ("a", 2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != ("a", 1)
    await transport.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "sockaddr"),
    [("fe80::1%3", ("fe80::1", 9, 0, 3)), ("fe80::1%lo", ("fe80::1", 9, 0, 1)), ("::1", ("::1", 9, 0, 0))],
)
async def test_ipv6_zones(kernel: Kernel, text: str, sockaddr: tuple[str, int, int, int]) -> None:
    transport, _ = await started()
    link = transport.link_for(UdpAddress(text, Port(9)))
    assert link is not None
    assert link.sockaddr == sockaddr
    assert str(link.address) == f"udp:[{text.replace('lo', '1')}]:9"
    await transport.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(("remote", "to"), [(REMOTE, "192.0.2.10"), (REMOTE6, "2001:db8::10")], ids=["IPv4", "IPv6"])
async def test_answers_leave_from_where_the_datagram_came_to(kernel: Kernel, remote: UdpAddress, to: str) -> None:
    source = socket.inet_pton(socket.AF_INET6 if ":" in to else socket.AF_INET, to)
    transport, received = await started()
    link = await heard(kernel, received, remote, to=to, size=1)
    assert received.datagrams[-1][1] == [b"x", b"x"], "put together all the same"
    put(link, b"alone")
    link.flush()
    put(link, b"12345", b"12345", b"1")
    link.flush()
    assert kernel.sources == [source, source]
    assert [(data, size) for _, data, size in kernel.sent] == [(b"alone", 0), (b"12345123451", 5)], "and in one call"
    assert link.address == remote, "for wg show"
    await transport.aclose()


@pytest.mark.asyncio
async def test_the_source_is_part_of_the_link_and_the_interface_is_not(kernel: Kernel) -> None:
    """So that an authenticated datagram to another address moves the peer, and a forged one does not."""
    transport, received = await started()
    one = await heard(kernel, received, REMOTE, to="192.0.2.10")
    other = await heard(kernel, received, REMOTE, to="192.0.2.11")
    assert one != other
    assert await heard(kernel, received, REMOTE, to="192.0.2.10") is one
    kernel.sockets[0].arrive(b"x", ("192.0.2.1", 51820), to="192.0.2.10", interface=8)
    received.changed.clear()
    await received.changed.wait()
    assert received.datagrams[-1][0] == one
    await transport.aclose()


@pytest.mark.asyncio
async def test_an_endpoint_that_is_set_by_hand_has_no_source(kernel: Kernel) -> None:
    transport, received = await started()
    link = await heard(kernel, received, REMOTE, to="192.0.2.10")
    by_hand = transport.link_for(REMOTE)
    assert by_hand is not None
    assert by_hand != link
    put(by_hand, b"x")
    by_hand.flush()
    assert kernel.sources == [None]
    assert isinstance(link, UdpLink)
    assert link.without_source() is by_hand
    assert by_hand.without_source() is by_hand
    await transport.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL], ids=os.strerror)
@pytest.mark.parametrize("datagrams", [(b"x",), (b"12345", b"12345")], ids=len)
async def test_an_address_that_is_gone_is_forgotten_and_nothing_lost(
    kernel: Kernel, refusal: int, datagrams: tuple[bytes, ...]
) -> None:
    transport, received = await started()
    link = await heard(kernel, received, REMOTE, to="192.0.2.10")
    kernel.refuse_sources = refusal
    put(link, *datagrams)
    link.flush()
    assert b"".join(data for _, data, _ in kernel.sent) == b"".join(datagrams)
    assert set(kernel.sources) == {None}
    assert transport.dropped_unsendable == 0
    kernel.refuse_sources = 0
    again = await heard(kernel, received, REMOTE, to="192.0.2.10")
    assert again != link, "the address is back: the next datagram says so"
    put(again, b"x")
    again.flush()
    assert kernel.sources[-1] == socket.inet_aton("192.0.2.10")
    await transport.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("interface", [7, 8, None], ids=["the same", "another", "none"])
async def test_a_way_that_has_changed_to_another_interface_is_followed(kernel: Kernel, interface: int | None) -> None:
    routes = FakeRoutes()
    transport, received = await started(fwmark=5, routes=routes)
    link = await heard(kernel, received, REMOTE, to="192.0.2.10")
    put(link, b"x")
    link.flush()
    assert routes.asked == [], "nothing has changed"
    routes.interface = interface
    routes.far.send(b"!")
    await routes.drained.wait()
    source = socket.inet_aton("192.0.2.10")
    for _ in range(2):
        put(link, b"x")
        link.flush()
    assert routes.asked == [("192.0.2.1", source, 5)], "once a change"
    assert kernel.sources[1:] == [source if interface == 7 else None] * 2
    await transport.aclose()
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_link_local_remote_stays_on_its_interface(kernel: Kernel) -> None:
    routes = FakeRoutes()
    transport, received = await started(routes=routes)
    kernel.sockets[1].arrive(b"x", ("fe80::1", 9, 0, 3), to="fe80::2")
    await received.changed.wait()
    link = received.datagrams[-1][0]
    transport.routes_state += 1
    put(link, b"x")
    link.flush()
    assert routes.asked == []
    assert kernel.sources == [socket.inet_pton(socket.AF_INET6, "fe80::2")]
    await transport.aclose()
