from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import PcapReader as ScapyReader

from lab.guest.packets import (
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    CapturedPacket,
    PcapReader,
    main,
    write_pcap,
    write_pcap_header,
    write_pcap_record,
)

IPV4 = bytes.fromhex("4500001400010000400100000a0000010a000002")


def packet(data: bytes, linktype: int = LINKTYPE_RAW, time: float = 1.5) -> CapturedPacket:
    return CapturedPacket(time, linktype, outgoing=True, checksum_pending=False, data=data)


def test_the_ip_packet_of_a_raw_capture_is_all_of_it() -> None:
    assert packet(IPV4).ip == IPV4


@pytest.mark.parametrize(("ethertype", "expected"), [("0800", IPV4), ("86dd", IPV4), ("0806", b"")])
def test_the_ip_packet_of_an_ethernet_frame_follows_its_header(ethertype: str, expected: bytes) -> None:
    assert packet(bytes(12) + bytes.fromhex(ethertype) + IPV4, LINKTYPE_ETHERNET).ip == expected


def test_scapy_reads_what_is_written() -> None:
    stream = io.BytesIO()
    write_pcap(stream, [packet(IPV4, time=1_700_000_000.25)], LINKTYPE_RAW)
    stream.seek(0)
    with ScapyReader(stream) as reader:
        (read,) = list(reader)
    assert bytes(read) == IPV4
    assert float(read.time) == 1_700_000_000.25


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(min_value=1, max_value=50))
def test_a_growing_file_is_read_record_by_record(records: list[bytes], step: int) -> None:
    whole = io.BytesIO()
    write_pcap_header(whole, LINKTYPE_RAW)
    for number, record in enumerate(records):
        write_pcap_record(whole, number + 0.5, record)
    data = whole.getvalue()
    growing = io.BytesIO()
    reader = PcapReader(growing)
    found: list[tuple[float, bytes]] = []
    for offset in range(0, len(data), step):
        here = growing.tell()
        growing.seek(0, io.SEEK_END)
        growing.write(data[offset : offset + step])
        growing.seek(here)
        found += reader.records()
    assert found == [(number + 0.5, record) for number, record in enumerate(records)]
    assert reader.linktype == LINKTYPE_RAW


class NeverAtRest(io.BytesIO):
    """A file that gets another record whenever somebody has read of it."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        here = self.tell()
        self.seek(0, io.SEEK_END)
        write_pcap_record(self, 1.5, IPV4)
        self.seek(here)
        assert len(self.getbuffer()) < 1000, "reading does not end"
        return data


def test_a_file_that_never_rests_is_read_to_its_present_end() -> None:
    growing = NeverAtRest()
    write_pcap_header(growing, LINKTYPE_RAW)
    growing.seek(0)
    reader = PcapReader(growing)
    assert [len(reader.records()) for _ in range(3)] == [0, 1, 1]


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="pcap"):
        PcapReader(io.BytesIO(bytes(24))).records()


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
