from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.guest.packets import LINKTYPE_RAW, CapturedPacket
from lab.qemu.nested_monitor import Operation, VsockMonitor
from lab.topology import Point
from lab.watch.capture import PacketCapture
from lab.watch.tap import Chunk, Kind
from wgvsock.addresses import Cid

ENCLAVE, HOST = 16, 2
PORTS = (51820, 51821)


class Packets(PacketCapture):
    point = Point.VSOCK

    def __init__(self) -> None:
        self.seen: list[CapturedPacket] = []

    def packets(self) -> list[CapturedPacket]:
        return self.seen

    def close(self) -> None:
        pass

    def pass_by(
        self,
        when: float,
        source: tuple[int, int],
        target: tuple[int, int],
        operation: Operation,
        data: bytes = b"",
        *,
        length: int | None = None,
    ) -> None:
        """One packet. `length` is the length in its header, where that differs from the packet shown."""
        ends = (source[0], target[0], source[1], target[1])
        transport = struct.pack("<QQIIIHHIII", *ends, len(data) if length is None else length, 1, 5, 0, 0, 0)
        header = struct.pack("<QQIIHHH2x", *ends, operation, 2, len(transport))
        self.seen.append(
            CapturedPacket(when, LINKTYPE_RAW, None, checksum_pending=False, data=header + transport + data)
        )


@pytest.fixture
def packets() -> Packets:
    return Packets()


@pytest.fixture
def monitor(packets: Packets, tmp_path: Path) -> VsockMonitor:
    return VsockMonitor(packets, tmp_path / "vsock.pcap", Cid(ENCLAVE), PORTS)


def test_a_connection_becomes_the_tap_s_records(packets: Packets, monitor: VsockMonitor) -> None:
    relay, enclave = (HOST, 1234), (ENCLAVE, 51820)
    packets.pass_by(1, relay, enclave, Operation.CONNECT)
    packets.pass_by(2, enclave, relay, Operation.CONNECT)  # the answer to it
    packets.pass_by(3, relay, enclave, Operation.PAYLOAD, b"question")
    packets.pass_by(4, enclave, relay, Operation.CONTROL)  # credit
    assert monitor.chunks() == [
        Chunk(1, 1, 51820, Kind.OPENED, b""),
        Chunk(3, 1, 51820, Kind.TO_ENCLAVE, b"question"),
    ]
    packets.pass_by(5, enclave, relay, Operation.PAYLOAD, b"answer")
    packets.pass_by(6, relay, enclave, Operation.DISCONNECT)
    packets.pass_by(7, enclave, relay, Operation.DISCONNECT)
    assert monitor.chunks()[2:] == [
        Chunk(5, 1, 51820, Kind.TO_RELAY, b"answer"),
        Chunk(6, 1, 51820, Kind.CLOSED, b""),
    ]
    monitor.close()


def test_each_connection_has_a_number_of_its_own(packets: Packets, monitor: VsockMonitor) -> None:
    for port, peer in ((51821, 1000), (51820, 1001), (51821, 1000)):
        packets.pass_by(1, (HOST, peer), (ENCLAVE, port), Operation.CONNECT)
    assert [(chunk.connection, chunk.port) for chunk in monitor.chunks()] == [(1, 51821), (2, 51820), (3, 51821)]
    monitor.close()


def test_other_guests_and_other_ports_are_left_out(packets: Packets, monitor: VsockMonitor) -> None:
    packets.pass_by(1, (ENCLAVE, 1234), (HOST, 9001), Operation.CONNECT)  # to the signer
    packets.pass_by(2, (ENCLAVE, 1234), (HOST, 9001), Operation.PAYLOAD, b"request")
    packets.pass_by(3, (HOST, 1234), (17, 51820), Operation.CONNECT)
    packets.pass_by(4, (HOST, 1234), (ENCLAVE, 5000), Operation.CONNECT)
    packets.pass_by(5, (HOST, 1234), (ENCLAVE, 51820), Operation.PAYLOAD, b"of a connection from before")
    assert monitor.chunks() == []
    monitor.close()


def test_what_is_cut_to_the_guests_buffers_is_taken_once(packets: Packets, monitor: VsockMonitor) -> None:
    relay, enclave = (HOST, 1234), (ENCLAVE, 51820)
    packets.pass_by(1, relay, enclave, Operation.CONNECT)
    for length in (4, 4, 2):
        packets.pass_by(2, relay, enclave, Operation.PAYLOAD, b"0123456789", length=length)
    packets.pass_by(3, relay, enclave, Operation.PAYLOAD, b"whole")
    assert [chunk.data for chunk in monitor.chunks()[1:]] == [b"0123", b"4567", b"89", b"whole"]
    monitor.close()


def test_it_follows_the_enclave_to_another_cid(packets: Packets, monitor: VsockMonitor) -> None:
    packets.pass_by(1, (HOST, 1), (ENCLAVE, 51820), Operation.CONNECT)
    monitor.follow(Cid(17))
    packets.pass_by(2, (HOST, 1), (ENCLAVE, 51820), Operation.PAYLOAD, b"nobody")
    packets.pass_by(3, (HOST, 2), (17, 51820), Operation.CONNECT)
    assert [chunk.time for chunk in monitor.chunks()] == [1, 3]
    monitor.close()


def test_it_only_watches(monitor: VsockMonitor) -> None:
    monitor.resume()
    with pytest.raises(LabError, match="cannot stall"):
        monitor.stall()
