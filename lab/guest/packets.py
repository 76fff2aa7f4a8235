"""Captures packets at an interface with an AF_PACKET socket (packet(7)), read only on demand. Standard library only.

The kernel timestamps every packet as it passes and keeps it in the socket's buffer, so no thread has to keep up with
it. If the interface is in another machine, ``python3 packets.py IFACE`` runs there and writes a pcap file to its
standard output (https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html, with nanoseconds).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW: Final = 101
LINKTYPE_USER0: Final = 147

_ARPHRD_ETHER: Final = 1
_ETH_P_ALL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_AUXDATA: Final = 8
_PACKET_OUTGOING: Final = 4
_TP_STATUS_CSUMNOTREADY: Final = 1 << 3
_SO_TIMESTAMPNS: Final = 35
_SO_RCVBUFFORCE: Final = 33

_LONGEST_PACKET: Final = 65536 + 64  # a super-packet of 64 KiB after an Ethernet header
_RECEIVE_BUFFER: Final = 32 << 20  # bytes, many times what one test makes

_PCAP_HEADER: Final = struct.Struct("<IHHiIII")
_PCAP_RECORD: Final = struct.Struct("<IIII")
_PCAP_MAGIC_NANOSECONDS: Final = 0xA1B23C4D


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One captured packet.

    Attributes:
        time: Unix time in seconds, by the kernel's clock.
        linktype: `LINKTYPE_RAW` (an IP packet) or `LINKTYPE_ETHERNET`.
        outgoing: Whether this machine sent it, or None if the record does not say.
        checksum_pending: The transport checksum is left to hardware that the packet has not reached.
        data: The bytes, starting with the link header.
    """

    time: float
    linktype: int
    outgoing: bool | None
    checksum_pending: bool
    data: bytes

    @property
    def ip(self) -> bytes:
        """The IP packet in it. Empty for ARP and similar frames."""
        if self.linktype == LINKTYPE_RAW:
            return self.data
        return self.data[14:] if self.data[12:14] in {b"\x08\x00", b"\x86\xdd"} else b""


def open_packet_socket(interface: str) -> socket.socket:
    """Open a non-blocking packet socket at an interface of the calling thread's network namespace.

    Raises:
        OSError: The interface does not exist, or CAP_NET_RAW is missing.
    """
    # Protocol 0 receives nothing: otherwise the socket would collect other interfaces' packets before it is bound.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:  # in a user namespace net.core.rmem_max is the limit
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((interface, _ETH_P_ALL))
    except OSError:
        sock.close()
        raise
    return sock


def read_packet(sock: socket.socket) -> CapturedPacket | None:
    """Return the next packet, or None if none waits.

    Raises:
        OSError: The interface is gone (ENETDOWN).
    """
    try:
        data, ancillary, _, address = sock.recvmsg(_LONGEST_PACKET, 256)
    except BlockingIOError:
        return None
    when, pending = 0.0, False
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("qq", value)
            when = seconds + nanoseconds / 1e9
        elif (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            pending = bool(struct.unpack_from("I", value)[0] & _TP_STATUS_CSUMNOTREADY)
    _, _, packet_type, hardware, _ = address
    linktype = LINKTYPE_ETHERNET if hardware == _ARPHRD_ETHER else LINKTYPE_RAW
    return CapturedPacket(when, linktype, packet_type == _PACKET_OUTGOING, pending, data)


def dropped(sock: socket.socket) -> int:
    """Return how many packets the kernel dropped for lack of buffer space since the last call."""
    _, drops = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return int(drops)


def write_pcap(stream: BinaryIO, packets: Iterable[CapturedPacket], linktype: int) -> None:
    """Write a pcap file of one link type."""
    write_pcap_header(stream, linktype)
    for packet in packets:
        write_pcap_record(stream, packet.time, packet.data)


def write_pcap_header(stream: BinaryIO, linktype: int) -> None:
    """Write a pcap file's first 24 bytes: little-endian, nanoseconds."""
    stream.write(_PCAP_HEADER.pack(_PCAP_MAGIC_NANOSECONDS, 2, 4, 0, 0, 0x40000, linktype))


def write_pcap_record(stream: BinaryIO, time: float, data: bytes) -> None:
    """Write one packet record."""
    seconds = int(time)
    stream.write(_PCAP_RECORD.pack(seconds, int((time - seconds) * 1e9), len(data), len(data)) + data)


class PcapReader:
    """Reads a pcap file of this module that may still be growing. Each call returns newly completed records."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = b""
        self.linktype: int | None = None

    def records(self) -> list[tuple[float, bytes]]:
        """Return time and data of each new record.

        Raises:
            ValueError: It is not a pcap file as written by `write_pcap_header`.
        """
        # Up to the present end: a writer that never rests would otherwise keep this call from ending.
        here = self._stream.tell()
        there = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(here)
        self._buffer += self._stream.read(there - here)
        offset = 0
        if self.linktype is None:
            if len(self._buffer) < _PCAP_HEADER.size:
                return []
            magic, *_, self.linktype = _PCAP_HEADER.unpack_from(self._buffer)
            if magic != _PCAP_MAGIC_NANOSECONDS:
                raise ValueError("not a little-endian pcap file with nanoseconds")
            offset = _PCAP_HEADER.size
        found = []
        while len(self._buffer) - offset >= _PCAP_RECORD.size:
            seconds, nanoseconds, length, _ = _PCAP_RECORD.unpack_from(self._buffer, offset)
            end = offset + _PCAP_RECORD.size + length
            if len(self._buffer) < end:
                break
            found.append((seconds + nanoseconds / 1e9, self._buffer[end - length : end]))
            offset = end
        self._buffer = self._buffer[offset:]
        return found


def stream_packets(sock: socket.socket, stream: BinaryIO, stop: Callable[[], bool] = lambda: False) -> None:
    """Copy what a packet socket receives to a pcap stream until told to stop, or until the interface disappears."""
    linktype: int | None = None
    while not stop():
        select.select([sock], [], [], 0.2)
        try:
            while packet := read_packet(sock):
                if linktype is None:
                    linktype = packet.linktype
                    write_pcap_header(stream, linktype)
                write_pcap_record(stream, packet.time, packet.data)
        except OSError:
            return
        stream.flush()


def main(argv: list[str]) -> int:
    """``packets.py IFACE``: pcap on standard output until interrupted."""
    if len(argv) != 1:
        print("usage: packets.py IFACE > FILE.pcap", file=sys.stderr)
        return 2
    with open_packet_socket(argv[0]) as sock, contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        print("capturing", file=sys.stderr, flush=True)
        stream_packets(sock, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
