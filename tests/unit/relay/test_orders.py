"""A bounded number of orders is remembered by number."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from wgvsock.relay import orders
from wgvsock.relay.errors import ReloadError
from wgvsock.relay.orders import Orders, Waiters, wait_for
from wgvsock.testing import without_waiting

NOW = datetime(2026, 11, 27, tzinfo=UTC)


@without_waiting
async def test_an_order_is_done_when_all_of_it_is() -> None:
    waiters, others, remembered = Waiters(), Waiters(), Orders()
    order = remembered.add("reload", NOW, {"a": waiters.add(), "b": others.add()})
    assert (order.done, order.ok, order.errors()) == (False, None, {})
    waiters.settle(None)
    assert (order.done, order.ok, order.errors()) == (False, None, {"a": None})
    error = ReloadError("name")
    others.settle(error)
    assert (order.done, order.ok, order.errors()) == (True, False, {"a": None, "b": error})
    await wait_for(order, 5)


@without_waiting
async def test_waiting_has_an_end() -> None:
    waiters = Waiters()
    order = Orders().add("reattest", NOW, {"a": waiters.add()})
    loop = asyncio.get_running_loop()
    began = loop.time()
    await wait_for(order, 3)
    assert not order.done
    assert loop.time() - began == 3


@without_waiting
async def test_what_was_given_up_is_no_outcome() -> None:
    waiters = Waiters()
    outcome = waiters.add()
    order = Orders().add("reattest", NOW, {"a": outcome})
    outcome.cancel()
    waiters.settle(None)
    assert (order.done, order.errors()) == (True, {})


def test_orders_are_bounded_and_found_by_number() -> None:
    remembered = Orders()
    first = remembered.add("reload", NOW, error=ReloadError("name"))
    assert remembered.find("1") is first
    assert first.ok is False
    for _ in range(orders.MAX_ORDERS):
        last = remembered.add("reattest", NOW)
    assert last.ok is True
    assert remembered.find("1") is None
    assert remembered.find("x") is None
    assert remembered.last("reattest") is last
    assert remembered.last("reload") is None
