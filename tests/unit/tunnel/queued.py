"""Packets in an interface's queue, and what the coalescer makes of them."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from wgvsock.testing import MemoryTun
from wgvsock.tunnel.coalescer import PADDING, Coalescer


class Reader:
    """A coalescer that is read to the end.

    Attributes:
        counts: The TUN's packets that each packet of the last `read` stands for.
    """

    def __init__(self, headroom: int = 10, *, enabled: bool = True) -> None:
        self.tun = MemoryTun(headroom)
        self.coalescer = Coalescer(self.tun)
        self.coalescer.enabled = enabled

    def read(self, *packets: bytes) -> list[bytes]:
        """Return the result of these waiting packets. Sealing overwrites the padding behind each, as in production."""
        for packet in packets:
            self.tun.inject(packet)
        read = []
        self.counts = []
        while length := self.coalescer.read():
            read.append(bytes(self.coalescer.buffer[:length]))
            self.counts.append(self.coalescer.segments)
            self.coalescer.buffer[length : length + PADDING] = b"\xee" * PADDING
        return read


def timestamp(value: int) -> list[tuple[str, Any]]:
    return [("NOP", None), ("NOP", None), ("Timestamp", (value, 0))]


def segment(number: int, payload: bytes = b"", *, version: int = 4, headroom: int = 10, **fields: Any) -> bytes:
    """A TCP segment, by default a bare acknowledgement of `number`. `fields` are scapy's, of both headers."""
    of_ip = {name: fields.pop(name) for name in ("id", "flags_ip", "frag", "ttl", "tos") if name in fields}
    if version == 4:
        ip = IP(src="10.0.0.1", dst="10.0.0.2", flags=of_ip.pop("flags_ip", "DF"), **of_ip)
    else:
        ip = IPv6(src="fd00::1", dst="fd00::2", **of_ip)
    fields = {"sport": 443, "dport": 40_000, "seq": 7, "flags": "A", "window": 500} | fields
    return bytes(headroom) + bytes(ip / TCP(ack=number, **fields) / payload)
