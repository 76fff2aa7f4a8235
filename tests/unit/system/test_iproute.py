"""This machine's own kernel through pyroute2's socket: nothing is kept, and lists arrive one at a time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from wgvsock.system.iproute import Dumps, IPRoute
from wgvsock.testing import without_waiting


async def kept(ipr: AsyncIPRoute) -> int:
    """Messages that the socket keeps after answered requests."""
    async with ipr:
        for _ in range(3):
            (link,) = await ipr.link("get", ifname="lo")
            assert link.get_attr("IFLA_IFNAME") == "lo"
        assert [address async for address in await ipr.addr("dump")]
        return int(ipr.msg_queue.queues[0].qsize())


def test_answers_that_nobody_waits_for_are_dropped() -> None:
    assert asyncio.run(kept(AsyncIPRoute())) > 0  # else `IPRoute` has become needless
    assert asyncio.run(kept(IPRoute())) == 0


async def lists() -> list[list[Any] | BaseException]:
    """The answers to concurrent requests on one socket."""
    async with IPRoute() as ipr:
        dump = Dumps(ipr)
        return await asyncio.gather(*(dump(what) for what in ("link", "addr", "route") * 5), return_exceptions=True)


def test_lists_that_several_ask_for_come_one_after_the_other() -> None:
    """The kernel refuses all but the first of several concurrent requests."""
    told = asyncio.run(lists())
    assert [messages for messages in told if isinstance(messages, BaseException)] == []
    assert all(told[::3])  # there is one interface at least


class Busy:
    """A socket on which an abandoned list is in transit for this many requests."""

    def __init__(self, refusals: int, code: int = errno.EBUSY) -> None:
        self.refusals, self.code, self.asked = refusals, code, 0

    async def link(self, _command: str) -> AsyncIterator[str]:
        self.asked += 1
        if self.asked <= self.refusals:
            raise NetlinkError(self.code)
        return self._messages()

    @staticmethod
    async def _messages() -> AsyncIterator[str]:
        yield "lo"


@without_waiting
async def test_a_list_that_nobody_reads_any_more_is_waited_for() -> None:
    assert await Dumps(Busy(3))("link") == ["lo"]


@pytest.mark.parametrize(("code", "asked"), [(errno.EBUSY, 20), (errno.EPERM, 1)])
@without_waiting
async def test_what_stays_refused_is_an_error(code: int, asked: int) -> None:
    busy = Busy(10**6, code)
    with pytest.raises(NetlinkError) as caught:
        await Dumps(busy)("link")
    assert (caught.value.code, busy.asked) == (code, asked)
