"""The traffic at the vsock point, as Scapy sees it: both stream framings, and the provisioning exchange.

The layers build on `scapy.contrib.wireguard`. `dissect` turns the tap's chunks into frames. Transport data stays sealed
here: `lab.watch.opener` opens it.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cbor2
from scapy.contrib.wireguard import Wireguard
from scapy.fields import IntField, LEShortField, XLEIntField
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, bind_layers

from lab.guest.packets import LINKTYPE_ETHERNET, CapturedPacket
from lab.watch.tap import Chunk, Kind
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.framing import Framing

MESSAGE_NAMES: Final = {1: "handshake initiation", 2: "handshake response", 3: "cookie reply", 4: "transport data"}
PROVISIONING_NAMES: Final = {0: "HELLO", 1: "REQUEST", 2: "RESPONSE", 3: "RESULT", 255: "ERROR"}
_IN_PLACE: Final = {Kind.TO_RELAY: ("HELLO", "RESPONSE"), Kind.TO_ENCLAVE: ("REQUEST", "RESULT")}


class NativeFrame(Packet):  # type: ignore[misc]
    """The ``native`` framing: u32 big-endian length, then one WireGuard message."""

    name = "wgvsock native frame"
    fields_desc: ClassVar = [IntField("length", None)]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill in the length."""
        return (struct.pack(">I", len(pay)) if self.length is None else pkt) + pay

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Separate the message from the next frame."""
        return s[: self.length], s[self.length :]


class CompatFrame(Packet):  # type: ignore[misc]
    """The ``compat`` framing: u16 little-endian length, u32 little-endian CRC-32, then one WireGuard message."""

    name = "wgvsock compat frame"
    fields_desc: ClassVar = [LEShortField("length", None), XLEIntField("crc", None)]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill in length and checksum."""
        length = pkt[:2] if self.length is not None else struct.pack("<H", len(pay))
        crc = pkt[2:] if self.crc is not None else struct.pack("<I", zlib.crc32(pay))
        return length + crc + pay

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Separate the message from the next frame."""
        return s[: self.length], s[self.length :]


bind_layers(NativeFrame, Wireguard)
bind_layers(CompatFrame, Wireguard)

FRAME_LAYERS: Final = {Framing.NATIVE: (NativeFrame, 4), Framing.COMPAT: (CompatFrame, 6)}


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete message on a stream.

    Attributes:
        time: When its last byte passed, Unix time in seconds.
        connection: The tap's number of the connection.
        port: vsock port: WireGuard's or that of provisioning.
        kind: Its direction.
        name: The message's name in the protocol.
        payload: The message without the frame's header.
        packet: Scapy's view (framing and WireGuard message), or None for provisioning.
        fields: The CBOR map of an unsealed provisioning message (`lab.watch.opener` fills in the others). Empty for
            WireGuard.
    """

    time: float
    connection: int
    port: int
    kind: Kind
    name: str
    payload: bytes
    packet: Any
    fields: dict[int, Any]


class Dissector:
    """Reassembles both directions of every connection into frames, in the order in which they were completed."""

    def __init__(self, framing: Framing = Framing.NATIVE) -> None:
        self._framing = framing
        self._pending: dict[tuple[int, Kind], bytes] = {}
        self._numbers: Counter[tuple[int, Kind]] = Counter()

    def feed(self, chunks: Iterable[Chunk]) -> list[Frame]:
        """Return the frames that these chunks complete."""
        frames = []
        for chunk in chunks:
            if chunk.kind in {Kind.TO_ENCLAVE, Kind.TO_RELAY}:
                key = (chunk.connection, chunk.kind)
                data = self._pending.pop(key, b"") + chunk.data
                while frame := _first_frame(chunk, data, self._framing, self._numbers[key]):
                    taken, message = frame
                    self._numbers[key] += 1
                    data = data[taken:]
                    frames.append(message)
                self._pending[key] = data
        return frames


def dissect(chunks: Iterable[Chunk], framing: Framing = Framing.NATIVE) -> list[Frame]:
    """Return the frames of a whole recording."""
    return Dissector(framing).feed(chunks)


def provisioning_name(kind: Kind, number: int, payload: bytes) -> str:
    """Return the name of a provisioning frame: by its type if that can be read, otherwise by its position.

    Args:
        kind: Its direction.
        number: Number of frames before it in this direction.
        payload: The message.
    """
    if kind is Kind.TO_RELAY and (fields := _clear_map(payload)):
        return PROVISIONING_NAMES.get(fields.get(2, -1), "unknown")
    return dict(enumerate(_IN_PLACE[kind])).get(number, "unknown")


def _first_frame(chunk: Chunk, data: bytes, framing: Framing, number: int) -> tuple[int, Frame] | None:
    provisioning = chunk.port == PROVISIONING_PORT
    header = 4 if provisioning else FRAME_LAYERS[framing][1]
    if len(data) < header:
        return None
    length = struct.unpack_from("<H" if header == 6 else ">I", data)[0]
    whole = header + length
    if len(data) < whole:
        return None
    payload = data[header:whole]
    if provisioning:
        name, packet = provisioning_name(chunk.kind, number, payload), None
        fields = _clear_map(payload)
    else:
        fields = {}
        name, packet = MESSAGE_NAMES.get(int.from_bytes(payload[:1]), "unknown"), FRAME_LAYERS[framing][0](data[:whole])
        if payload[:1] == b"\4" and len(payload) == 32:
            name = "keepalive"
    return whole, Frame(chunk.time, chunk.connection, chunk.port, chunk.kind, name, payload, packet, fields)


def _clear_map(payload: bytes) -> dict[int, Any]:
    """Return the map of an unsealed message. Sealed bytes never parse as one, because a map has only one encoding."""
    with contextlib.suppress(ValueError, TypeError, cbor2.CBORDecodeError):
        decoded = cbor2.loads(payload)
        if isinstance(decoded, dict) and cbor2.dumps(decoded, canonical=True) == payload:
            return decoded
    return {}


def ip_layers(packet: CapturedPacket | bytes) -> Any:
    """Return a captured packet as Scapy's IP or IPv6 layer, or None if it is neither."""
    if isinstance(packet, CapturedPacket):
        if packet.linktype == LINKTYPE_ETHERNET:
            frame = Ether(packet.data)
            return frame.payload if isinstance(frame.payload, IP | IPv6) else None
        packet = packet.data
    match packet[:1] and packet[0] >> 4:
        case 4:
            return IP(packet)
        case 6:
            return IPv6(packet)
        case _:
            return None


def checksum_needed(plaintext: bytes) -> bool:
    """Return whether opened transport data leaves its checksum to the receiver (VIRTIO_NET_HDR_F_NEEDS_CSUM)."""
    return bool(plaintext[:1]) and plaintext[0] == 1


def inner_packet(plaintext: bytes) -> bytes:
    """Return the IP packet in opened transport data, without padding and the gso profile's virtio header.

    A plain packet begins with its version, 4 or 6. A virtio-net header of 10 bytes begins with flags, whose high nibble
    is 0.
    """
    packet = plaintext[10:] if plaintext[:1] and plaintext[0] >> 4 == 0 else plaintext
    layers = ip_layers(packet)
    if layers is None:
        return b""
    return packet[: layers.len if layers.version == 4 else 40 + layers.plen]


def checksums_right(packet: bytes) -> bool:
    """Return whether every checksum of an IP packet (header, TCP, UDP, ICMP, ICMPv6) equals Scapy's."""
    layers = ip_layers(packet)
    fresh = layers.copy()
    layer = fresh
    while layer:
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                delattr(layer, name)
        layer = layer.payload
    return bytes(fresh) == bytes(layers)
