import asyncio

from wgvsock.addresses import UnixAddress
from wgvsock.testing import MemoryTransport, without_waiting
from wgvsock.transports.base import Link


class Listener:
    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.writable: list[Link] = []

    async def start(self, transport: MemoryTransport) -> None:
        await transport.start(self.received, self.writable.append, lambda _: None)

    def received(self, _link: Link, datagrams: list[memoryview]) -> None:
        self.datagrams += [bytes(datagram) for datagram in datagrams]


def send(transport: MemoryTransport, *datagrams: bytes) -> None:
    for datagram in datagrams:
        room = transport.link.reserve(len(datagram))
        assert room is not None
        room[:] = datagram
        transport.link.commit(len(datagram))
    transport.link.flush()


@without_waiting
async def test_batches_arrive_in_order_in_the_next_turn() -> None:
    left, right = MemoryTransport.pair()
    listener = Listener()
    await listener.start(right)
    send(left, b"one", b"two")
    assert listener.datagrams == []
    await asyncio.sleep(0)
    assert listener.datagrams == [b"one", b"two"] == left.carried


@without_waiting
async def test_endpoints_are_the_link_and_its_address() -> None:
    left, _ = MemoryTransport.pair()
    assert left.link_for(left.link) is left.link
    assert left.link_for(UnixAddress("right")) is left.link
    assert left.link_for(UnixAddress("elsewhere")) is None
    left.retain({left.link})
    assert left.retained == {left.link}


@without_waiting
async def test_a_blocked_link_holds_back_up_to_its_limit() -> None:
    left, right = MemoryTransport.pair()
    listener, reports = Listener(), Listener()
    await listener.start(right)
    await reports.start(left)
    left.link.block()
    assert not left.link.writable
    while (room := left.link.reserve(1)) is not None:
        room[:] = b"x"
        left.link.commit(1)
        left.link.flush()
    await asyncio.sleep(0)
    assert listener.datagrams == []
    left.link.unblock()
    await asyncio.sleep(0)
    assert set(listener.datagrams) == {b"x"}
    assert reports.writable == [left.link]


@without_waiting
async def test_a_severed_wire_and_a_closed_end_lose_datagrams() -> None:
    left, right = MemoryTransport.pair()
    listener = Listener()
    await listener.start(right)
    left.severed = True
    send(left, b"lost")
    left.severed = False
    send(left, b"too late")
    await right.aclose()
    await asyncio.sleep(0)
    assert listener.datagrams == []
    assert left.carried == [b"lost", b"too late"]


@without_waiting
async def test_what_the_tunnel_tells_a_link() -> None:
    left, _ = MemoryTransport.pair()
    left.link.commit(0)
    left.link.mark_authenticated()
    left.link.close("why")
    assert left.link.authenticated
    assert left.link.closed == ["why"]
    assert left.carried == []
