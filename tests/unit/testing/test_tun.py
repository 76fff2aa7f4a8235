import errno

import pytest

from wgvsock.devices.errors import TunGoneError
from wgvsock.testing import MemoryTun


def test_packets_both_ways_keep_their_borders() -> None:
    tun = MemoryTun()
    room = memoryview(bytearray(100))
    assert tun.read_into(room) == 0
    assert tun.take() is None
    for packet in (b"one", b"three"):
        tun.inject(packet)
        assert tun.write(memoryview(packet))
    assert [bytes(room[: tun.read_into(room)]) for _ in range(2)] == [b"one", b"three"]
    assert [tun.take(), tun.take(), tun.take()] == [b"one", b"three", None]
    tun.close()


def test_a_super_packet_fits() -> None:
    tun = MemoryTun(packet_headroom=10)
    packet = bytes(65_545)
    tun.inject(packet)
    room = memoryview(bytearray(70_000))
    assert tun.read_into(room) == len(packet)
    assert tun.write(memoryview(packet))
    assert tun.take() == packet
    assert tun.packet_headroom == 10
    tun.close()


def test_refusals_and_full_queues() -> None:
    tun = MemoryTun()
    tun.refuses_writes = True
    assert not tun.write(memoryview(b"x"))
    tun.refuses_writes = False
    written = 0
    while tun.write(memoryview(bytes(1000))):
        written += 1
        assert written < 100_000
    tun.close()


def test_why_a_write_was_refused() -> None:
    tun = MemoryTun(packet_headroom=10)
    super_packet, plain = memoryview(bytes([1, 1]) + bytes(30)), memoryview(bytes(32))
    tun.refuses_super_packets = True
    assert [tun.write(plain), tun.write(super_packet), tun.write_error] == [True, False, errno.EINVAL]
    while tun.write(plain):
        pass
    assert tun.write_error == errno.EAGAIN
    tun.refuses_writes = True
    assert [tun.write(plain), tun.write_error] == [False, errno.EIO]
    tun.close()


def test_removal() -> None:
    tun = MemoryTun()
    tun.remove()
    with pytest.raises(TunGoneError):
        tun.read_into(memoryview(bytearray(10)))
    tun.close()


def test_name_and_offloads() -> None:
    tun = MemoryTun()
    assert tun.name == "memory0"
    tun.set_offloads(True)
    assert tun.offloads
    tun.close()
