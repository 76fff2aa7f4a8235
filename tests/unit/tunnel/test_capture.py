"""A watched tunnel carries the same packets, and shows each of them once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.relay.enclaves.test_attendant import arrival, packet
from tests.unit.service_pair import ServicePair
from wgvsock.testing import without_waiting
from wgvsock.transports.base import Link


class Notes:
    """Records what it sees."""

    def __init__(self, headroom: int) -> None:
        self.headroom = headroom
        self.packets: list[tuple[bool, bytes]] = []
        self.messages: list[tuple[bool, int]] = []

    def inner(self, packet: memoryview, *, outgoing: bool) -> None:
        self.packets.append((outgoing, bytes(packet[self.headroom :])))

    def outer(self, link: Link, datagram: memoryview, *, outgoing: bool) -> None:
        assert link.address is not None
        self.messages.append((outgoing, datagram[0]))


@without_waiting
async def test_everything_is_shown_in_both_directions_and_nothing_afterwards(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    await pair.up()
    relay, enclave = pair.relay_tuns[0], pair.enclave_tuns[0]
    header = bytes(relay.packet_headroom)
    tunnel = pair.attendant.room.tunnel
    notes = Notes(relay.packet_headroom)
    tunnel.watch(notes)
    out, back = packet("198.51.100.10", "10.73.0.2"), packet("10.73.0.2", "198.51.100.10")
    relay.inject(header + out)
    assert await arrival(pair, enclave) == header + out
    enclave.inject(header + back)
    assert await arrival(pair, relay) == header + back
    assert (True, out) in notes.packets
    assert (False, back) in notes.packets
    assert {(True, 4), (False, 4)} <= set(notes.messages)
    pair.relay.reattest()  # handshakes are messages of the core itself
    await pair.until(lambda: {kind for _, kind in notes.messages} >= {1, 2, 4}, "a handshake")
    tunnel.watch(None)
    notes.packets.clear()
    notes.messages.clear()
    relay.inject(header + out)
    assert await arrival(pair, enclave) == header + out
    await asyncio.sleep(60)
    assert (notes.packets, notes.messages) == ([], [])
    await pair.down()
