"""A capture in a guest: ``python3 -m lab.guest.recorder IFACE`` appends each passing packet to standard output.

Each record is `RECORD` and the packet's bytes. SIGUSR1 requests a mark: a record without a packet, written after every
packet that had passed before the signal. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
from typing import BinaryIO, Final

from lab.guest.packets import CapturedPacket, open_packet_socket, read_packet

RECORD: Final = struct.Struct(">dHbBI")
"""Time (Unix, seconds), link type, outgoing (-1 unknown), checksum pending, length."""

MARK_LINKTYPE: Final = 0xFFFF
READY: Final = "ready"


def pack_record(packet: CapturedPacket) -> bytes:
    """Return the record of one packet."""
    outgoing = -1 if packet.outgoing is None else int(packet.outgoing)
    header = RECORD.pack(packet.time, packet.linktype, outgoing, packet.checksum_pending, len(packet.data))
    return header + packet.data


class RecordReader:
    """Reads records that arrive in pieces.

    Attributes:
        marks: Number of marks so far.
    """

    def __init__(self) -> None:
        self.marks = 0
        self._buffer = b""

    def feed(self, data: bytes) -> list[CapturedPacket]:
        """Return the packets whose records are complete with this piece, and count marks."""
        self._buffer += data
        found = []
        offset = 0
        while len(self._buffer) - offset >= RECORD.size:
            when, linktype, outgoing, pending, length = RECORD.unpack_from(self._buffer, offset)
            end = offset + RECORD.size + length
            if len(self._buffer) < end:
                break
            if linktype == MARK_LINKTYPE:
                self.marks += 1
            else:
                known = None if outgoing < 0 else bool(outgoing)
                data = self._buffer[end - length : end]
                found.append(CapturedPacket(when, linktype, known, bool(pending), data))
            offset = end
        self._buffer = self._buffer[offset:]
        return found


def watch(interface: str, stream: BinaryIO) -> None:
    """Copy packets until killed, or until the interface disappears."""
    wake_up, on_signal = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(on_signal)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    with open_packet_socket(interface) as sock:
        print(READY, file=sys.stderr, flush=True)
        while True:
            ready, _, _ = select.select([sock.fileno(), wake_up], [], [])
            with contextlib.suppress(OSError):  # ENETDOWN: its packets are here, and marks are still answered
                while packet := read_packet(sock):
                    stream.write(pack_record(packet))
            if wake_up in ready:
                for _ in os.read(wake_up, 4096):
                    stream.write(RECORD.pack(0, MARK_LINKTYPE, -1, 0, 0))
            stream.flush()


if __name__ == "__main__":
    watch(sys.argv[1], sys.stdout.buffer)
