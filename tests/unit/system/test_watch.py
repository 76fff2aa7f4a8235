"""The kernel's notifications trigger a check, here with sockets that tests write to."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from wgvsock.system.watch import KernelWatch, takes_rules_away
from wgvsock.testing import without_waiting


class Netlinks:
    """Replaces netlink sockets: the test holds the kernel's ends."""

    def __init__(self) -> None:
        self.kernel_ends: dict[int, socket.socket] = {}
        self.bound: list[tuple[int, int]] = []
        self.refuses: set[int] = set()

    def __call__(self, protocol: int) -> socket.socket:
        kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel_ends[protocol] = kernel
        ours.setblocking(False)
        netlinks = self

        class Bindable(socket.socket):
            def bind(self, address: object) -> None:
                if protocol in netlinks.refuses:
                    raise OSError(93, "Protocol not supported")
                assert isinstance(address, tuple)
                netlinks.bound.append((protocol, address[1]))

        return Bindable(fileno=ours.detach())


@pytest.fixture
def netlinks() -> Iterator[Netlinks]:
    made = Netlinks()
    yield made
    for end in made.kernel_ends.values():
        end.close()


def test_what_is_listened_to(netlinks: Netlinks) -> None:
    async def listen() -> None:
        with KernelWatch(netlinks):
            pass

    asyncio.run(listen())
    # RTMGRP_LINK, IPV4_IFADDR, _ROUTE, _RULE, IPV6_IFADDR, _ROUTE as bits; RULE, NETCONF of both.
    routing = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23 | 1 << 24
    assert netlinks.bound == [(0, routing), (12, 1 << 6)]


@pytest.mark.parametrize("protocol", [0, 12])
def test_news_of_either_end_the_wait(netlinks: Netlinks, protocol: int) -> None:
    async def look() -> None:
        with KernelWatch(netlinks) as subject:
            waiting = asyncio.ensure_future(subject.wait(3600))
            await asyncio.sleep(0)
            for _ in range(3):
                netlinks.kernel_ends[protocol].send(b"news")
            await waiting
            # All that was read counts as one change; what comes later is another one.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await subject.wait(3600)
            netlinks.kernel_ends[protocol].send(b"more")
            await subject.wait(3600)

    asyncio.run(look())


def test_without_news_patience_ends_the_wait(netlinks: Netlinks) -> None:
    async def look() -> None:
        with KernelWatch(netlinks) as subject:
            await subject.wait(0)

    asyncio.run(look())


def test_a_kernel_without_nf_tables_tells_the_rest(netlinks: Netlinks) -> None:
    netlinks.refuses.add(12)

    async def look() -> None:
        with KernelWatch(netlinks) as subject:
            netlinks.kernel_ends[0].send(b"news")
            await subject.wait(3600)

    asyncio.run(look())


def test_a_file_s_changes_end_the_wait(netlinks: Netlinks, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"

    async def look() -> None:
        with KernelWatch(netlinks, file=str(file)) as subject:
            waiting = asyncio.ensure_future(subject.wait(3600))
            await asyncio.sleep(0)
            (tmp_path / "another").write_text("")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.shield(waiting)
            file.write_text("nameserver 192.0.2.1\n")
            await waiting

    asyncio.run(look())


def test_without_inotify_the_rest_is_heard(netlinks: Netlinks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("wgvsock.system.watch.FileWatch", refuse)

    async def look() -> None:
        with KernelWatch(netlinks, file=str(tmp_path / "resolv.conf")) as subject:
            netlinks.kernel_ends[0].send(b"news")
            await subject.wait(3600)

    asyncio.run(look())


def test_netlink_itself() -> None:
    """Any user may open it: a bind to these groups needs no capability."""

    async def look() -> None:
        with KernelWatch() as subject:
            await subject.wait(0)

    asyncio.run(look())


@without_waiting
async def test_rules_of_the_older_packet_filter_are_looked_at_where_it_has_any(netlinks: Netlinks) -> None:
    seen = [(2, "nat", b"5")]
    with KernelWatch(netlinks, sizes=lambda: tuple(seen)) as subject:
        assert not await subject.wait(2.5)
        loop = asyncio.get_running_loop()
        before = loop.time()
        loop.call_later(5, seen.clear)  # somebody flushes them
        assert await subject.wait(3600)
        assert 5 <= loop.time() - before <= 6


def message(kind: int, body: bytes) -> bytes:
    length = 16 + len(body)
    return struct.pack("=IHHII", length, kind, 0, 1, 0) + body + bytes(-length % 4)


NEW_RULE, DELETED_TABLE, DELETED_RULE = 0xA06, 0xA02, 0xA08


@pytest.mark.parametrize(
    ("data", "ours"),
    [
        (b"", False),
        (b"short", False),
        (message(NEW_RULE, b"wgvsock-relay"), False),
        (message(DELETED_TABLE, b"kube-proxy"), False),
        (message(DELETED_TABLE, b"wgvsock-relay"), True),
        (message(NEW_RULE, b"x") + message(DELETED_RULE, b"WGVSOCK-relay-FWD"), True),
        (struct.pack("=IH", 0, 0xA02) + b"wgvsock-" * 3, False),  # no message has such a length
    ],
)
def test_what_tells_that_rules_of_ours_are_gone(data: bytes, ours: bool) -> None:
    assert takes_rules_away(data) is ours


def test_the_wait_tells_it_once(netlinks: Netlinks) -> None:
    async def look() -> list[bool]:
        with KernelWatch(netlinks) as subject:
            netlinks.kernel_ends[12].send(message(DELETED_TABLE, b"wgvsock-relay"))
            first = await subject.wait(3600)
            netlinks.kernel_ends[12].send(message(NEW_RULE, b"wgvsock-relay"))
            return [first, await subject.wait(3600)]

    assert asyncio.run(look()) == [True, False]
