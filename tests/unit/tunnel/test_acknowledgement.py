from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from tests.unit.tunnel.queued import Reader, segment, timestamp
from wgvsock.tunnel.coalescer import MAXIMUM_ACKNOWLEDGEMENTS


@pytest.mark.parametrize("headroom", [0, 10])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("timed", [False, True])
def test_the_newest_of_a_connection_is_enough(headroom: int, version: int, timed: bool) -> None:
    reader = Reader(headroom, enabled=False)
    packets = []
    for number in range(1000, 1005):
        fields: dict[str, Any] = {"id": number} if version == 4 else {}
        options = timestamp(number) if timed else []
        packets.append(segment(number, version=version, headroom=headroom, window=number, options=options, **fields))
    assert reader.read(*packets) == [packets[-1]]
    assert reader.counts == [5]
    assert reader.coalescer.superseded == 4
    reader.tun.close()


def test_numbers_wrap_around(reader: Reader) -> None:
    packets = [segment(2**32 - 1), segment(0), segment(5)]
    assert reader.read(*packets) == [packets[-1]]


@pytest.mark.parametrize("later", [1000, 999, 1000 - 2**31 & 0xFFFFFFFF])
def test_what_acknowledges_nothing_new_stays(reader: Reader, later: int) -> None:
    """A duplicate reports a loss (RFC 5681, section 3.2) or a new window. An older one was overtaken."""
    packets = [segment(1000), segment(later, window=900), segment(later, window=900)]
    assert reader.read(*packets) == packets
    assert reader.counts == [1, 1, 1]


SACK = [("NOP", None), ("NOP", None), ("SAck", (3000, 4000))]
ODD: dict[str, dict[str, Any]] = {
    "a selective acknowledgement": {"options": SACK},
    "one with a timestamp": {"options": [*timestamp(1), *SACK]},
    "the echo of a congestion": {"flags": "AE"},
    "a reduced window": {"flags": "AC"},
    "a push": {"flags": "AP"},
    "urgent": {"flags": "AU", "urgptr": 1},
    "an end": {"flags": "FA"},
    "a reset": {"flags": "RA"},
    "a beginning": {"flags": "SA"},
    "the accurate counter": {"reserved": 1},
    "data": {"payload": b"x"},
    "data as long as the option": {"payload": b"\x01\x01\x08\x0a" + bytes(8)},
    "another option of that length": {"options": [("Experiment", (0x1234, 0x5678)), ("NOP", None), ("NOP", None)]},
    "a timestamp in front": {"options": [("Timestamp", (1, 0)), ("NOP", None), ("NOP", None)]},
    "a fragment": {"flags_ip": "MF"},
    "a later fragment": {"frag": 3},
}


@pytest.mark.parametrize("name", ODD)
def test_anything_else_stays_and_keeps_its_place(reader: Reader, name: str) -> None:
    packets = [segment(1000), segment(2000, **ODD[name]), segment(2000, **ODD[name]), segment(3000)]
    assert reader.read(*packets) == packets


@pytest.mark.parametrize("other", [{"sport": 444}, {"seq": 8}, {"tos": 8}, {"ttl": 63}, {"options": timestamp(1)}])
def test_only_the_same_kind_is_replaced(reader: Reader, other: dict[str, Any]) -> None:
    """An acknowledgement after data, in another class, or on another path, stands for itself."""
    packets = [segment(1000), segment(2000, **other)]
    assert reader.read(*packets) == packets


def test_a_packet_that_says_another_length_stays(reader: Reader) -> None:
    packets = [bytearray(segment(number)) for number in (1000, 2000)]
    for packet in packets:
        packet[13] -= 1
    assert reader.read(*map(bytes, packets)) == packets


def test_another_protocol_of_that_length_stays(reader: Reader) -> None:
    datagram = bytes(10) + bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=443, dport=40_000) / bytes(12))
    assert reader.read(datagram, datagram) == [datagram, datagram]
    short = bytes(10) + b"\x45" + bytes(38)
    assert reader.read(short, short) == [short, short]


def test_connections_in_turns_are_left_alone(reader: Reader) -> None:
    """They would have to be held back until all are known, which costs more than it saves."""
    packets = [segment(number, dport=port) for number in (1, 2) for port in (1000, 1001)]
    assert reader.read(*packets) == packets


def test_other_packets_keep_their_place(reader: Reader) -> None:
    data = segment(3, b"x" * 1000)
    packets = [segment(1), segment(2), data, segment(4), segment(5), data]
    assert reader.read(*packets) == [packets[1], data, packets[4], data]
    assert reader.counts == [2, 1, 2, 1]


def test_what_is_read_ahead_is_bounded(reader: Reader) -> None:
    packets = [segment(number) for number in range(MAXIMUM_ACKNOWLEDGEMENTS + 3)]
    assert reader.read(*packets) == [packets[MAXIMUM_ACKNOWLEDGEMENTS - 1], packets[-1]]
    assert reader.counts == [MAXIMUM_ACKNOWLEDGEMENTS, 3]


def test_it_tells_what_waits_and_that_nothing_comes_after(reader: Reader) -> None:
    data = segment(1, b"x" * 100)
    for packet in (segment(1), segment(2), data):
        reader.tun.inject(packet)
    assert reader.coalescer.read()
    assert (reader.coalescer.waiting, reader.coalescer.drained) == (len(data), False)
    assert reader.coalescer.read()
    assert (reader.coalescer.waiting, reader.coalescer.drained) == (0, False)
    for packet in (segment(3), segment(4)):
        reader.tun.inject(packet)
    assert reader.coalescer.read()
    assert (reader.coalescer.waiting, reader.coalescer.drained) == (0, True)


SEGMENTS = st.tuples(st.integers(0, 3), st.sampled_from(["A", "PA", "FA"]), st.sampled_from([1, 2]), st.booleans())


@given(st.lists(SEGMENTS, max_size=30))
def test_only_the_next_of_a_connection_replaces_one(drawn: list[tuple[int, str, int, bool]]) -> None:
    reader = Reader()
    packets = [
        segment(number, flags=flags, dport=port, options=timestamp(1) if timed else [], id=place)
        for place, (number, flags, port, timed) in enumerate(drawn)
    ]
    read = reader.read(*packets)
    assert sum(reader.counts) == len(packets)
    for port in (1, 2):
        places = [place for place, of in enumerate(drawn) if of[2] == port]
        came = [packets.index(packet) for packet in read if packet[32:34] == bytes([0, port])]
        assert came == sorted(came)
        assert came[-1:] == places[-1:]
        for place, following in pairwise(places):
            if place not in came:
                (older, flags, _, timed), newer = drawn[place], drawn[following]
                assert flags == "A"
                assert newer[1:] == (flags, port, timed)
                assert newer[0] > older
    reader.tun.close()
