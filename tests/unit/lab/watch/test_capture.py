from __future__ import annotations

import pytest

from lab.deadline import Deadline
from lab.errors import LabTimeoutError
from lab.guest.packets import LINKTYPE_RAW, CapturedPacket
from lab.topology import Point
from lab.watch.capture import PacketCapture


class Growing(PacketCapture):
    """One more packet at each read."""

    point = Point.RELAY_ETH0

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._packets: list[CapturedPacket] = []

    def packets(self) -> list[CapturedPacket]:
        if len(self._packets) < self._limit:
            self._packets.append(CapturedPacket(0.0, LINKTYPE_RAW, None, False, bytes([len(self._packets)])))
        return self._packets

    def close(self) -> None:
        pass


def test_it_waits_for_the_packet_and_asks_of_each_once() -> None:
    asked: list[bytes] = []

    def third(packet: CapturedPacket) -> bool:
        asked.append(packet.data)
        return packet.data == b"\2"

    assert Growing(5).wait_for(third, Deadline(10, sleep=lambda _: None), "the third").data == b"\2"
    assert asked == [b"\0", b"\1", b"\2"]


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(LabTimeoutError, match="the fourth"):
        Growing(3).wait_for(lambda packet: packet.data == b"\3", Deadline(0, sleep=lambda _: None), "the fourth")
