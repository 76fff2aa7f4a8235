from __future__ import annotations

import io
import struct

from scapy.contrib.wireguard import Wireguard, WireguardInitiation
from scapy.layers.inet import IP, UDP
from scapy.utils import RawPcapReader

from wgvsock.tunnel.pcap import FILE_HEADER, RECORD_HEADER_SIZE, SNAP_LENGTH, as_udp, record, record_size

ENDS = ((bytes((0, 0, 0, 3)), 51820), (bytes((0, 0, 0, 16)), 51820))


def test_another_implementation_reads_the_file() -> None:
    packet = as_udp(b"\x01\0\0\0" + bytes(144), *ENDS)
    data = FILE_HEADER + record(1_795_000_000_123_456_789, packet)
    ((read, meta),) = list(RawPcapReader(io.BytesIO(data)))
    assert read == packet
    assert (meta.sec, meta.usec) == (1_795_000_000, 123_456_789)  # nanoseconds
    parsed = IP(read)
    assert (parsed.src, parsed.dst, parsed[UDP].sport, parsed[UDP].dport) == ("0.0.0.3", "0.0.0.16", 51820, 51820)
    assert bytes(parsed[UDP].payload) == b"\x01\0\0\0" + bytes(144)
    checksum = parsed.chksum
    del parsed.chksum
    assert IP(bytes(parsed)).chksum == checksum


def test_another_dissector_takes_it_for_wireguard() -> None:
    """Scapy's, which like Wireshark's recognises it by the UDP port and the first byte."""
    parsed = IP(as_udp(b"\x01\0\0\0" + bytes(144), *ENDS))
    assert isinstance(parsed[UDP].payload, Wireguard)
    assert parsed[UDP].payload.message_type == 1
    assert parsed[UDP].payload.haslayer(WireguardInitiation)


def test_what_exceeds_a_header_s_field_is_there_all_the_same() -> None:
    packet = as_udp(bytes(70_000), *ENDS)
    assert len(packet) == 70_028
    assert struct.unpack_from("!H", packet, 2) == (0xFFFF,)
    data = record(0, bytes(SNAP_LENGTH + 5))
    assert record_size(data[:RECORD_HEADER_SIZE]) == SNAP_LENGTH
    assert len(data) == RECORD_HEADER_SIZE + SNAP_LENGTH
