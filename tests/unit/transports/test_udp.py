"""The UDP transport against a scripted kernel. tests/e2e/test_wg_udp.py has the real one."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct

import pytest

from tests.unit.transports.udp_kernel import OTHER, REMOTE, REMOTE6, Kernel, put, started
from wgvsock.addresses import Cid, Port, UdpAddress, VsockAddress
from wgvsock.errors import TransportError
from wgvsock.transports import udp
from wgvsock.transports.errors import ListenError


@pytest.mark.asyncio
async def test_both_families_have_one_port(kernel: Kernel) -> None:
    transport, _ = await started()
    assert [(sock.family, sock.port) for sock in kernel.sockets] == [
        (socket.AF_INET, 40001),
        (socket.AF_INET6, 40001),
    ]
    assert transport.listen_port == 40001
    assert kernel.sockets[1].options[socket.IPPROTO_IPV6, socket.IPV6_V6ONLY] == 1
    await transport.aclose()
    await transport.aclose()
    assert all(sock.closed for sock in kernel.sockets)


@pytest.mark.asyncio
async def test_a_given_port_in_use_is_an_error(kernel: Kernel) -> None:
    kernel.ports_in_use = {(socket.AF_INET6, 51820)}
    with pytest.raises(ListenError, match="UDP port 51820: Address already in use"):
        await started(51820)
    assert all(sock.closed for sock in kernel.sockets)


@pytest.mark.asyncio
async def test_a_kernel_without_ipv6(kernel: Kernel) -> None:
    kernel.families = {socket.AF_INET}
    transport, _ = await started()
    link = transport.link_for(REMOTE6)
    put(link, b"x")
    transport.flush()
    assert (kernel.sent, transport.dropped_unsendable) == ([], 1)
    await transport.aclose()
    kernel.families = set()
    with pytest.raises(ListenError, match="Address family not supported"):
        await started()


@pytest.mark.asyncio
async def test_the_port_changes_live(kernel: Kernel) -> None:
    transport, received = await started(1)
    link = transport.link_for(REMOTE)
    await transport.set_listen_port(2)
    assert transport.listen_port == 2
    assert [sock.closed for sock in kernel.sockets] == [True, True, False, False]
    put(link, b"x")
    transport.flush()
    kernel.sockets[2].arrive(b"y", ("192.0.2.1", 51820))
    await received.changed.wait()
    assert kernel.sent == [(("192.0.2.1", 51820), b"x", 0)]
    assert received.datagrams == [(link, [b"y"])]
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_port_in_use_leaves_the_old_sockets(kernel: Kernel) -> None:
    transport, _ = await started(1)
    kernel.ports_in_use = {(socket.AF_INET, 2)}
    with pytest.raises(ListenError):
        await transport.set_listen_port(2)
    assert transport.listen_port == 1
    assert [sock.closed for sock in kernel.sockets] == [False, False, True]
    await transport.aclose()


@pytest.mark.asyncio
async def test_packets_are_marked(kernel: Kernel) -> None:
    transport, _ = await started(fwmark=7)
    assert kernel.marks() == {struct.pack("=I", 7)}
    transport.set_fwmark(0xFFFFFFFF)
    assert kernel.marks() == {b"\xff" * 4}
    await transport.set_listen_port(2)
    assert kernel.marks() == {b"\xff" * 4}
    kernel.forbid_marks = True
    with pytest.raises(TransportError, match="cannot mark outgoing packets: Operation not permitted"):
        transport.set_fwmark(1)
    assert transport.fwmark == 0xFFFFFFFF
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_remote_has_one_link(kernel: Kernel) -> None:
    transport, received = await started()
    link = transport.link_for(REMOTE)
    assert link is not None
    assert transport.link_for(REMOTE) is link
    assert transport.link_for(link) is link
    kernel.sockets[0].arrive(b"x", ("192.0.2.1", 51820))
    await received.changed.wait()
    assert received.datagrams[0][0] is link
    assert (link.address, link.writable, link.authenticated) == (REMOTE, True, True)
    assert repr(link) == "<UdpLink udp:192.0.2.1:51820>"
    link.mark_authenticated()
    link.close("nothing to close")
    transport.retain([])
    assert transport.link_for(REMOTE) is link
    await transport.aclose()


@pytest.mark.asyncio
async def test_only_udp_has_links(kernel: Kernel) -> None:
    transport, _ = await started()
    assert transport.link_for(VsockAddress(Cid(16), Port(1))) is None
    assert transport.link_for(None) is None
    await transport.aclose()


@pytest.mark.asyncio
async def test_strangers_cannot_fill_the_memory(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "MAX_LINKS", 8)
    transport, received = await started()
    for port in range(100):
        kernel.sockets[0].arrive(b"", ("203.0.113.1", port))
    while len(received.datagrams) < 100:
        received.changed.clear()
        await received.changed.wait()
    assert len(transport._links) <= 8
    await transport.aclose()


@pytest.mark.asyncio
async def test_an_unknown_zone_has_no_link(kernel: Kernel) -> None:
    transport, _ = await started()
    assert transport.link_for(UdpAddress("fe80::1%nowhere9", Port(9))) is None
    await transport.aclose()


@pytest.mark.asyncio
async def test_equal_datagrams_for_one_remote_leave_together(kernel: Kernel) -> None:
    transport, _ = await started()
    link, other = transport.link_for(REMOTE), transport.link_for(OTHER)
    put(link, b"a" * 100, b"b" * 100, b"c" * 60)
    put(link, b"d" * 100)
    put(other, b"e" * 100, b"f" * 120)
    transport.flush()
    to, to_other = ("192.0.2.1", 51820), ("192.0.2.2", 51820)
    assert kernel.sent == [
        (to, b"a" * 100 + b"b" * 100 + b"c" * 60, 100),  # a shorter one can only be the last
        (to, b"d" * 100, 0),
        (to_other, b"e" * 100, 0),
        (to_other, b"f" * 120, 0),
    ]
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_run_has_the_kernel_s_limits(kernel: Kernel) -> None:
    transport, _ = await started()
    link = transport.link_for(REMOTE)
    put(link, *[b"s" * 10] * 70)
    put(link, *[b"l" * 30_000] * 3)
    transport.flush()
    assert [(len(data), size) for _, data, size in kernel.sent] == [(640, 10), (60, 10), (60_000, 30_000), (30_000, 0)]
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_reservation_can_be_taken_back(kernel: Kernel) -> None:
    transport, _ = await started()
    link = transport.link_for(REMOTE)
    assert link is not None
    link.reserve(100)
    link.commit(0)
    put(link, b"x")
    link.flush()
    assert kernel.sent == [(("192.0.2.1", 51820), b"x", 0)]
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_kernel_without_segmentation(kernel: Kernel) -> None:
    kernel.options = set()
    transport, _ = await started()
    put(transport.link_for(REMOTE), b"a", b"b")
    transport.flush()
    assert [(data, size) for _, data, size in kernel.sent] == [(b"a", 0), (b"b", 0)]
    await transport.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(("refusal", "tries_again"), [(errno.EIO, False), (errno.EINVAL, True)])
async def test_a_refused_run_leaves_one_by_one(kernel: Kernel, refusal: int, *, tries_again: bool) -> None:
    transport, _ = await started()
    link = transport.link_for(REMOTE)
    kernel.refuse_runs = refusal
    put(link, b"a", b"b", b"c")
    transport.flush()
    assert [(data, size) for _, data, size in kernel.sent] == [(b"a", 0), (b"b", 0), (b"c", 0)]
    kernel.refuse_runs = 0
    put(link, b"d", b"e")
    transport.flush()
    assert (kernel.sent[3:] == [(("192.0.2.1", 51820), b"de", 1)]) is tries_again
    assert transport.dropped_unsendable == 0
    await transport.aclose()


@pytest.mark.asyncio
async def test_what_cannot_be_sent_is_lost_and_counted(kernel: Kernel) -> None:
    transport, _ = await started()
    link = transport.link_for(REMOTE)
    kernel.refuse_all = errno.ENETUNREACH
    put(link, b"a", b"b")
    transport.flush()
    assert transport.dropped_unsendable == 2
    kernel.refuse_all = 0
    put(link, b"c")
    transport.flush()
    assert [data for _, data, _ in kernel.sent] == [b"c"]
    await transport.aclose()


@pytest.mark.asyncio
async def test_what_the_kernel_does_not_take_waits(kernel: Kernel) -> None:
    transport, received = await started()
    link, other = transport.link_for(REMOTE), transport.link_for(OTHER)
    assert link is not None
    kernel.room = 1
    put(link, b"a")
    put(other, b"b")
    put(link, b"c")
    link.flush()
    assert not link.writable
    put(link, b"d")
    link.flush()
    assert [data for _, data, _ in kernel.sent] == [b"a"]
    kernel.room = 100
    await received.changed.wait()
    assert [data for _, data, _ in kernel.sent] == [b"a", b"b", b"cd"]
    assert link.writable
    assert received.writable == [other]
    await transport.aclose()


@pytest.mark.asyncio
async def test_it_can_block_again_at_once(kernel: Kernel) -> None:
    transport, received = await started()
    link, other = transport.link_for(REMOTE), transport.link_for(OTHER)
    kernel.room = 0
    put(link, b"a")
    put(other, b"b")
    transport.flush()
    kernel.room = 1
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [data for _, data, _ in kernel.sent] == [b"a"]
    assert transport.blocked
    assert received.writable == []
    kernel.room = 1
    await received.changed.wait()
    assert [data for _, data, _ in kernel.sent] == [b"a", b"b"]
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_full_buffer_is_flushed_and_then_has_no_room(kernel: Kernel) -> None:
    transport, received = await started()
    link = transport.link_for(REMOTE)
    assert link is not None
    put(link, *[b"x" * 65_000] * 4)
    assert not kernel.sent
    put(link, b"x" * 65_000)
    assert len(kernel.sent) == 4
    kernel.room = 0
    put(link, *[b"x" * 65_000] * 3)
    assert link.reserve(65_000) is None
    assert transport.blocked
    await transport.set_listen_port(9)  # nothing waits on the new sockets
    assert not transport.blocked
    assert received.writable == [link]
    assert link.reserve(65_000) is not None
    await transport.aclose()


@pytest.mark.asyncio
async def test_datagrams_that_the_kernel_put_together_are_taken_apart(kernel: Kernel) -> None:
    transport, received = await started()
    kernel.sockets[1].arrive(b"aaabbbc", ("2001:db8::1", 51820, 0, 0), size=3)
    await received.changed.wait()
    assert received.datagrams == [(transport.link_for(REMOTE6), [b"aaa", b"bbb", b"c"])]
    await transport.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 3, 7, -1])
async def test_a_lone_datagram_is_one(kernel: Kernel, size: int) -> None:
    transport, received = await started()
    kernel.sockets[0].arrive(b"abc", ("192.0.2.1", 51820), size=size)
    await received.changed.wait()
    assert received.datagrams == [(transport.link_for(REMOTE), [b"abc"])]
    await transport.aclose()


@pytest.mark.asyncio
async def test_a_flood_gives_way_to_the_event_loop(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "READ_BUDGET", 3 * udp._READ_COST)
    transport, received = await started()
    for _ in range(10):
        kernel.sockets[0].arrive(b"", ("192.0.2.1", 1))
    await received.changed.wait()
    assert len(received.datagrams) == 3
    await transport.aclose()
