from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lab.guest.packets import CapturedPacket
from lab.guest.recorder import MARK_LINKTYPE, RECORD, RecordReader, pack_record

PACKET = CapturedPacket(1795396250.5, 1, outgoing=True, checksum_pending=False, data=b"frame")
PACKETS = st.builds(
    CapturedPacket,
    st.floats(0, 4e9),
    st.integers(0, MARK_LINKTYPE - 1),
    st.sampled_from([True, False, None]),
    st.booleans(),
    st.binary(max_size=100),
)


@given(st.lists(PACKETS), st.integers(1, 50))
def test_records_are_read_whatever_their_pieces(packets: list[CapturedPacket], size: int) -> None:
    data = b"".join(map(pack_record, packets))
    reader = RecordReader()
    found = [packet for start in range(0, len(data), size) for packet in reader.feed(data[start : start + size])]
    assert found == packets
    assert reader.marks == 0


def test_marks_are_counted_and_are_no_packets() -> None:
    mark = RECORD.pack(0, MARK_LINKTYPE, -1, 0, 0)
    reader = RecordReader()
    assert reader.feed(mark + pack_record(PACKET) + mark) == [PACKET]
    assert reader.marks == 2


def test_an_unknown_direction_stays_unknown() -> None:
    unknown = replace(PACKET, outgoing=None)
    assert RecordReader().feed(pack_record(unknown)) == [unknown]
