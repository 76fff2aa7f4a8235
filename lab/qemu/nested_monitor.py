"""The vsock point of `nested`: what the outer guest's kernel shows of its AF_VSOCK at a monitor interface.

No process stands between the Relay and the Enclave there. The kernel's vsockmon device (linux/vsockmon.h) provides a
copy of every vsock packet with a special header, like a network interface. A capture at it is converted to the format
that the tap of other backends records, so that the same code reads both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from lab.errors import LabError
from lab.guest.packets import LINKTYPE_USER0, CapturedPacket, write_pcap_header, write_pcap_record
from lab.watch.capture import PacketCapture
from lab.watch.tap import PSEUDO_HEADER, Kind, TapControl
from wgvsock.addresses import Cid, UnixAddress

INTERFACE: Final = "vsockmon0"

_HEADER: Final = struct.Struct("<QQIIHHH2x")  # af_vsockmon_hdr: CIDs, ports, operation, transport, its header's length
_LENGTH: Final = struct.Struct("<24xI")  # virtio_vsock_hdr: CIDs, ports, then the payload's length


class Operation(IntEnum):
    """The operation of a vsock packet (``AF_VSOCK_OP_…``)."""

    CONNECT = 1
    DISCONNECT = 2
    CONTROL = 3
    PAYLOAD = 4


class VsockMonitor(TapControl):
    """The tap's reading half, built on a capture at the monitor interface. It cannot inject faults.

    Args:
        capture: At `INTERFACE`, since before the first connection.
        recording: The file that is written, in the tap's format.
        enclave: Only traffic to and from this CID counts.
        ports: The Enclave's ports: only connections to them count.
    """

    def __init__(self, capture: PacketCapture, recording: Path, enclave: Cid, ports: Iterable[int]) -> None:
        super().__init__(UnixAddress(str(recording)), recording)
        self._capture = capture
        self._enclave = enclave
        self._ports = frozenset(ports)
        self._seen = 0
        self._connections: dict[tuple[int, int], int] = {}
        self._carried: dict[int, int] = {}
        with recording.open("wb") as stream:
            write_pcap_header(stream, LINKTYPE_USER0)

    def refresh(self) -> None:
        """Append what has passed since the last call."""
        packets = self._capture.packets()
        new, self._seen = packets[self._seen :], len(packets)
        with self.recording.open("ab") as stream:
            for packet in new:
                if (record := self._record(packet)) is not None:
                    write_pcap_record(stream, packet.time, record)

    def follow(self, enclave: Cid) -> None:
        """Change the enclave's CID."""
        self.refresh()
        self._enclave = enclave

    def _record(self, packet: CapturedPacket) -> bytes | None:
        """Return the tap's record of a packet, or None for what the tap would not see, such as the stream's credit."""
        source, target, source_port, target_port, operation, _, header = _HEADER.unpack_from(packet.data)
        if (target, target_port in self._ports) == (self._enclave, True):
            kind, port, peer = Kind.TO_ENCLAVE, target_port, source_port
        elif (source, source_port in self._ports) == (self._enclave, True):
            kind, port, peer = Kind.TO_RELAY, source_port, target_port
        else:
            return None
        if operation == Operation.CONNECT and kind is Kind.TO_ENCLAVE:
            self._connections[port, peer] = max(self._connections.values(), default=0) + 1
            return PSEUDO_HEADER.pack(self._connections[port, peer], port, Kind.OPENED)
        if (number := self._connections.get((port, peer))) is None:
            return None
        match operation:
            case Operation.PAYLOAD:
                return PSEUDO_HEADER.pack(number, port, kind) + self._payload(number, packet.data, header)
            case Operation.DISCONNECT if kind is Kind.TO_ENCLAVE:
                return PSEUDO_HEADER.pack(number, port, Kind.CLOSED)
            case _:
                return None

    def _payload(self, number: int, data: bytes, header: int) -> bytes:
        """Return the payload of one packet.

        vhost-vsock splits a packet to the guest's receive buffers, and shows the monitor the whole packet with each
        part. Only the length is that of the part (virtio_transport_build_skb of Linux 6.12).
        """
        (length,) = _LENGTH.unpack_from(data, _HEADER.size)
        payload = data[_HEADER.size + header :]
        begin = self._carried.pop(number, 0) if length < len(payload) else 0
        end = begin + length
        if end < len(payload):
            self._carried[number] = end
        return payload[begin:end]

    def _ask(self, **request: object) -> dict[str, Any]:
        if request["verb"] == "resume":
            return {}  # there is nothing to end
        raise LabError(
            f"the vsock point cannot {request['verb']}",
            why="only the kernel stands between the Relay and the Enclave here",
            fix="LAB=pair has a tap",
        )
