"""Window scaling between an enclave and a stack without it. The test plays both."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from wgvsock.uplink import windows
from wgvsock.uplink.windows import HOLD, ITSELF, SHIFT, Windows

ENCLAVE = {4: "10.73.0.2", 6: "fd73::2"}
WORLD = {4: "192.0.2.7", 6: "2001:db8::7"}
FD = 7
SEQ, ACK = 1000, 5000
"""Of the enclave's and the stack's first byte of data."""

BOTH = pytest.mark.parametrize("version", [4, 6])


def network(version: int, source: str, destination: str) -> Packet:
    return (IP if version == 4 else IPv6)(src=source, dst=destination)


def read(data: bytes) -> Packet:
    packet = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    rebuilt = packet.copy()
    for layer, name in ((IP, "chksum"), (IP, "len"), (IPv6, "plen"), (TCP, "chksum"), (TCP, "dataofs")):
        if layer in rebuilt:
            delattr(rebuilt[layer], name)
    assert bytes(rebuilt) == data, "a length or a checksum is wrong"
    return packet


class Line:
    """A connection of the enclave's, or one of the world's, between both ends."""

    def __init__(self, version: int = 4) -> None:
        self.version = version
        self.put: list[Packet] = []
        self.callers: dict[int, tuple[int, int]] = {FD: (version, 443)}
        self.windows = Windows(lambda packet: self.put.append(read(packet)), self.callers.get)

    def enclave(self, flags: str, seq: int, ack: int = ACK, data: bytes = b"", **fields: Any) -> Packet | None:
        """What the stack sees of a segment, or None if the segment waits."""
        segment = TCP(sport=40000, dport=443, flags=flags, seq=seq, ack=ack, **{"window": 512, **fields})
        packet = network(self.version, ENCLAVE[self.version], WORLD[self.version]) / segment / Raw(data)
        view = memoryview(bytearray(bytes(packet)))
        return None if self.windows.keeps(view) else read(bytes(view))

    def stack(
        self, flags: str, ack: int = SEQ, window: int = 65_535, data: bytes = b"", **fields: Any
    ) -> Packet | None:
        """What the enclave sees of a segment, or None if it sees nothing."""
        segment = TCP(sport=443, dport=40000, flags=flags, seq=ACK, ack=ack, window=window, **fields)
        packet = bytes(network(self.version, WORLD[self.version], ENCLAVE[self.version]) / segment)
        head = packet[: windows.HEAD]
        told = self.windows.gives(head)
        if told is None:
            return None
        return read(told if len(told) > len(head) else told + packet[windows.HEAD :])

    def connect(self, shift: int | None = 7) -> Line:
        options = [("MSS", 64_960)] + ([("WScale", shift)] if shift is not None else [])
        self.enclave("S", SEQ - 1, 0, options=options)
        self.windows.opened(FD)
        self.windows.feed()
        self.stack("SA", options=[("MSS", 65_481)])
        self.enclave("A", SEQ)
        return self


def shift_of(packet: Packet | None) -> int | None:
    assert packet is not None
    return dict(packet[TCP].options).get("WScale")


@BOTH
def test_a_syn_is_answered_with_a_shift_where_it_has_one(version: int) -> None:
    for offered, answered in ((7, SHIFT), (0, SHIFT), (None, None)):
        line = Line(version)
        line.enclave("S", SEQ - 1, 0, options=[("MSS", 1460)] + ([("WScale", offered)] if offered is not None else []))
        line.windows.opened(FD)
        syn_ack = line.stack("SA", options=[("MSS", 65_481)])
        assert syn_ack is not None
        assert shift_of(syn_ack) == answered
        assert (dict(syn_ack[TCP].options)["MSS"], syn_ack[TCP].window) == (65_481, 65_535)


@BOTH
def test_the_enclave_is_offered_more_than_the_stack_takes(version: int) -> None:
    line = Line(version).connect()
    for window in (65_535, 30_000, 0):
        told = line.stack("A", SEQ + 65_535 - window, window)
        assert told is not None
        assert told[TCP].window << SHIFT == pytest.approx(window + HOLD, abs=1 << SHIFT)
    unscaled = Line(version).connect(shift=None).stack("A", SEQ, 30_000)
    assert unscaled is not None
    assert unscaled[TCP].window == 30_000


@BOTH
def test_the_stack_sees_the_enclaves_window_as_it_is_meant(version: int) -> None:
    line = Line(version).connect(shift=3)
    for said, meant in ((100, 800), (8191, 65_528), (60_000, 65_535), (0, 0)):
        seen = line.enclave("A", SEQ, window=said)
        assert seen is not None
        assert seen[TCP].window == meant
    line = Line(version).connect(shift=None)
    seen = line.enclave("A", SEQ, window=100)
    assert seen is not None
    assert seen[TCP].window == 100


@BOTH
def test_what_the_stack_does_not_take_waits_until_it_does(version: int) -> None:
    line = Line(version).connect()
    size = 30_000
    segments = [bytes([number]) * size for number in range(4)]
    seen = [line.enclave("A", SEQ + number * size, data=data) for number, data in enumerate(segments)]
    assert [one is not None for one in seen] == [True, True, False, False]
    assert line.windows.held > 2 * size
    line.windows.feed()
    assert line.put == []
    line.stack("A", SEQ + size)
    line.windows.feed()
    assert [(bytes(one[TCP].payload), one[TCP].seq) for one in line.put] == [(segments[2], SEQ + 2 * size)]
    line.stack("A", SEQ + 2 * size)
    line.windows.feed()
    assert bytes(line.put[1][TCP].payload) == segments[3]
    assert line.windows.held == 0


def filled(line: Line) -> Line:
    """The stack's window is full, and a segment of 1000 bytes waits."""
    assert line.enclave("A", SEQ, data=bytes(65_000)) is not None
    assert line.enclave("A", SEQ + 65_000, data=bytes(1000)) is None
    return line


@BOTH
def test_what_a_waiting_segment_acknowledges_does_not_wait(version: int) -> None:
    line = filled(Line(version).connect())
    assert line.put == []  # nothing new
    assert line.enclave("PA", SEQ + 66_000, ACK + 99, bytes(500)) is None
    (bare,) = line.put
    assert (str(bare[TCP].flags), bare[TCP].seq, bare[TCP].ack) == ("A", SEQ, ACK + 99)
    assert bytes(bare[TCP].payload) == b""
    seen = line.enclave("A", SEQ + 66_500, ACK + 200)
    assert seen is not None
    assert (seen[TCP].seq, seen[TCP].ack) == (SEQ, ACK + 200)


def test_a_probe_of_the_enclave_is_left_as_it_is() -> None:
    seen = filled(Line().connect()).enclave("A", SEQ - 1)
    assert seen is not None
    assert seen[TCP].seq == SEQ - 1


def test_an_end_waits_for_its_turn() -> None:
    line = filled(Line().connect())
    assert line.enclave("FA", SEQ + 66_000) is None
    line.stack("A", SEQ + 65_000)
    line.windows.feed()
    assert [str(one[TCP].flags) for one in line.put] == ["A", "FA"]
    assert line.enclave("R", SEQ + 66_001) is not None


def test_what_is_sent_again_is_kept_once() -> None:
    line = filled(Line().connect())
    assert line.enclave("A", SEQ, data=bytes(1000)) is not None  # the stack may have lost it
    held = line.windows.held
    assert line.enclave("A", SEQ + 65_000, data=bytes(1000)) is None
    assert line.enclave("A", SEQ + 70_000, data=bytes(1000)) is None  # what is between is not here
    assert line.windows.held == held


@pytest.mark.parametrize("size", [535, 1000, 7001, 60_000])
def test_all_waits_that_was_offered_and_no_more(size: int) -> None:
    """The first segment that waits begins before the end of the stack's window."""
    line = Line().connect()
    first = 65_535 - min(size, 535) + 1
    assert line.enclave("A", SEQ, data=bytes(first)) is not None
    told = line.stack("A", SEQ)
    assert told is not None
    offered = told[TCP].window << SHIFT
    for at in range(first, offered - size + 1, size):
        assert line.enclave("A", SEQ + at, data=bytes(size)) is None
    taken = (offered - first) // size
    for at in range(first + taken * size, 2 * offered, size):
        assert line.enclave("A", SEQ + at, data=bytes(size)) is None
    line.stack("A", SEQ + 2 * offered)
    line.windows.feed()
    # The window is told in steps of 4 bytes.
    assert sum(len(one[TCP].payload) for one in line.put) in {taken * size, (offered + 3 - first) // size * size}


def test_all_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MAX_HELD", 3000)
    line = filled(Line().connect())
    for at in range(SEQ + 66_000, SEQ + 76_000, 1000):
        line.enclave("A", at, data=bytes(1000))
    assert 2000 < line.windows.held <= 3000


@BOTH
@pytest.mark.parametrize("shift", [7, None])
def test_the_enclave_hears_when_the_stack_takes_data_again(version: int, shift: int | None) -> None:
    line = Line(version).connect(shift)
    line.windows.drained([FD])
    assert line.put == []  # its window is open
    line.enclave("A", SEQ, data=bytes(65_000))
    line.stack("A", SEQ + 65_000, 0)
    line.windows.drained([FD, FD + 1])
    (probe,) = line.put
    assert (str(probe[TCP].flags), probe[TCP].seq) == ("A", SEQ + 65_000 - 1)
    last = line.enclave("A", SEQ + 65_000)
    assert last is not None
    assert probe[TCP].window != last[TCP].window  # or it could be counted as a duplicate


class Answering(Line):
    """The stack answers each probe with the window of now."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 0
        self.heard: list[Packet | None] = []
        self.windows = Windows(self._answer, self.callers.get)

    def _answer(self, packet: bytes) -> None:
        self.put.append(read(packet))
        if not self.put[-1][TCP].payload:
            self.heard.append(self.stack("A", SEQ + 65_000, self.window))


def test_only_news_are_told() -> None:
    line = Answering()
    filled(line.connect())
    line.stack("A", SEQ + 65_000, 0)
    line.windows.drained([FD])
    assert line.heard == [None]
    line.window = 40_000
    line.windows.drained([FD])
    assert line.heard[1] is not None
    assert line.heard[1][TCP].window << SHIFT == pytest.approx(40_000 + HOLD, abs=1 << SHIFT)
    assert len(line.put[-1][TCP].payload) == 1000  # what has waited goes on at once


@BOTH
def test_a_client_of_a_published_port_is_served_as_well(version: int) -> None:
    line = Line(version)
    line.windows.opened(FD)
    line.windows.feed()  # its SYN may have to wait until it is known where the enclave is
    for _ in range(2):  # and is sent again
        assert shift_of(line.stack("S", options=[("MSS", 65_481)])) == SHIFT
    line.enclave("SA", SEQ - 1, options=[("MSS", 64_960), ("WScale", 4)], window=64_000)
    line.stack("A", SEQ)
    seen = line.enclave("A", SEQ, window=100)
    assert seen is not None
    assert seen[TCP].window == 1600
    filled(line)


@BOTH
def test_the_connections_of_a_withdrawn_port_end_at_both_ends(version: int) -> None:
    line = Line(version)
    packed = socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, ENCLAVE[version])
    line.windows.opened(FD)
    line.stack("S", options=[("MSS", 65_481)])
    assert line.windows.end(packed, 40000) == []  # nobody has answered yet
    line.enclave("SA", SEQ - 1, options=[("MSS", 64_960)])
    line.stack("A", SEQ)
    line.enclave("A", SEQ, ACK + 5)
    assert line.windows.end(packed, 40001) == line.windows.end(bytes(len(packed)), 40000) == []
    (told,) = map(read, line.windows.end(packed, 40000))
    assert (told.src, told.dst, told[TCP].sport, told[TCP].dport) == (WORLD[version], ENCLAVE[version], 443, 40000)
    assert (str(told[TCP].flags), told[TCP].seq) == ("R", ACK + 5)
    (reset,) = line.put
    assert (str(reset[TCP].flags), reset[TCP].seq, reset[TCP].ack) == ("RA", SEQ, ACK + 5)
    assert Line(version).connect().windows.end(packed, 40000) == []  # the enclave's own


def test_the_relays_own_connection_is_one_of_them() -> None:
    line = Line()
    line.callers[FD] = ITSELF
    line.windows.opened(FD)
    assert shift_of(line.stack("S", options=[("MSS", 65_481)])) == SHIFT
    line.enclave("SA", SEQ - 1, options=[("MSS", 64_960)])
    line.stack("A", SEQ)
    line.enclave("A", SEQ)
    assert line.windows.connections == 0  # a replaced enclave is not waited for because of it
    assert [str(read(packet)[TCP].flags) for packet in line.windows.end_all()] == ["R"]


def test_connections_are_counted_until_they_are_closed() -> None:
    line = Line().connect()
    assert line.windows.connections == 1
    line.windows.closed(FD)
    assert line.windows.connections == 0


def test_an_enclave_that_does_not_scale_gets_no_more() -> None:
    line = Line()
    line.windows.opened(FD)
    line.stack("S", options=[("MSS", 65_481)])
    line.enclave("SA", SEQ - 1, options=[("MSS", 64_960)])
    told = line.stack("A", SEQ, 30_000)
    assert told is not None
    assert told[TCP].window == 30_000
    assert line.enclave("A", SEQ, data=bytes(66_000 - 1000)) is not None
    assert line.enclave("A", SEQ + 65_000, data=bytes(1000)) is not None


def test_nothing_is_left_of_a_socket_that_is_closed() -> None:
    line = filled(Line().connect())
    line.windows.closed(FD)
    line.windows.closed(FD)
    assert line.windows.held == 0
    seen = line.enclave("A", SEQ + 66_000, data=bytes(1000), window=512)
    assert seen is not None
    assert seen[TCP].window == 512
    assert line.stack("A", SEQ) is not None


def test_a_flow_that_begins_again_before_the_old_one_is_closed_is_the_new_one() -> None:
    line = filled(Line().connect())
    line.enclave("S", SEQ - 1, 0, options=[("WScale", 2)])
    line.windows.opened(FD + 1)
    line.windows.feed()
    assert line.windows.held == 0
    line.windows.closed(FD)
    line.stack("SA", options=[("MSS", 65_481)])
    seen = line.enclave("A", SEQ, window=100)
    assert seen is not None
    assert seen[TCP].window == 400


def test_a_socket_that_belongs_to_no_syn_begins_nothing() -> None:
    line = Line()
    line.enclave("S", SEQ - 1, 0, options=[("WScale", 2)])  # refused, and another socket is opened later
    line.windows.feed()
    line.windows.opened(FD + 1)  # for datagrams
    assert shift_of(line.stack("SA", options=[("MSS", 1460)])) is None
    assert shift_of(line.stack("S", options=[("MSS", 1460)])) is None
    line.windows.opened(FD)
    line.windows.closed(FD)
    assert shift_of(line.stack("S", options=[("MSS", 1460)])) is None


@BOTH
def test_other_protocols_are_not_looked_at(version: int) -> None:
    packet = bytes(network(version, ENCLAVE[version], WORLD[version]) / UDP(dport=443) / Raw(b"x"))
    line = Line(version)
    assert line.windows.gives(packet) == packet
    assert not line.windows.keeps(memoryview(bytearray(packet)))


def test_a_header_that_claims_to_be_longer_than_its_packet_is_the_stacks_to_refuse() -> None:
    line = Line().connect()
    segment = TCP(sport=40000, dport=443, flags="A", seq=SEQ, ack=ACK, dataofs=15)
    packet = bytearray(bytes(network(4, ENCLAVE[4], WORLD[4]) / segment))
    assert not line.windows.keeps(memoryview(packet))


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        (b"\x03\x03\x05", 5),
        (b"\x01\x01\x03\x03\x05", 5),
        (b"\x02\x04\x05\xb4\x03\x03\xff", 14),
        (b"\x00\x03\x03\x05", None),
        (b"\x08", None),
        (b"\x08\x01\x03\x03\x05", None),
        (b"\x03\x03", None),
        (b"\x03\x02\x05", None),
        (b"", None),
    ],
)
def test_options_of_any_kind_are_read(options: bytes, shift: int | None) -> None:
    assert windows._scale_of(options) == shift
