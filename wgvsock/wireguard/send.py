"""IP packet -> datagram, in the order in which a packet passes the functions: route, seal or stage, flush.

After that come the messages that the protocol itself sends: keepalives, handshake messages and cookie replies.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from wgvsock.wireguard.constants import (
    PADDING_MULTIPLE,
    TRANSPORT_DATA,
    TRANSPORT_HEADER_SIZE,
    TRANSPORT_OVERHEAD,
)
from wgvsock.wireguard.endpoints import cookie_source
from wgvsock.wireguard.events import DropReason
from wgvsock.wireguard.keypair import Keypair
from wgvsock.wireguard.messages import TransportData
from wgvsock.wireguard.noise import OpenedInitiation, create_initiation, create_response
from wgvsock.wireguard.primitives import Bytes

if TYPE_CHECKING:
    from wgvsock.wireguard.device import Device
    from wgvsock.wireguard.peer import Peer

_pack_header: Final = TransportData.LAYOUT.pack_into
pack_nonce: Final = struct.Struct("<4xQ").pack
"""The AEAD's 12-byte nonce: 4 zero bytes and the counter (section 5.4.6)."""
_ipv4_destination: Final = struct.Struct("16x4s").unpack_from
_ipv6_destination: Final = struct.Struct("24x16s").unpack_from
_PADDINGS: Final = tuple(bytes(size) for size in range(PADDING_MULTIPLE))


def send_packet(device: Device, packet: Bytes, now: float) -> None:
    """Route one packet (with its headroom), then seal and queue it, or stage it and start a handshake."""
    peer = peer_for_packet(device, memoryview(packet))
    if peer is None:
        return
    if peer.has_session(now):
        _queue_sealed(peer, packet, now)
    elif peer.endpoint is None:
        device.drop(DropReason.NO_ENDPOINT, peer=peer)
    else:
        peer.stage(bytes(packet))
        send_handshake_initiation(peer, now)


def peer_for_packet(device: Device, packet: memoryview) -> Peer | None:
    """Cryptokey routing: the peer whose allowed IPs contain the packet's destination. None means a counted drop."""
    headroom = device.packet_headroom
    try:
        version = packet[headroom] >> 4
        if version == 4:
            (address,) = _ipv4_destination(packet, headroom)
        elif version == 6:
            (address,) = _ipv6_destination(packet, headroom)
        else:
            device.drop(DropReason.MALFORMED_PACKET)
            return None
    except (IndexError, struct.error):
        device.drop(DropReason.MALFORMED_PACKET)
        return None
    peer = device.allowed_ips.lookup(address)
    if peer is None:
        device.drop(DropReason.NO_ROUTE)
    return peer


def seal_into(peer: Peer, packet: memoryview, length: int, out: memoryview, now: float) -> int:
    """Seal one packet into one transport data message (section 5.4.6).

    Args:
        peer: The receiver.
        packet: The packet with its headroom, followed by at least 16 bytes of space for padding.
        length: Bytes of headroom and packet.
        out: At least length + 48 bytes.
        now: Monotonic seconds.

    Returns:
        The message's length in bytes, or 0 without a usable keypair: pass the packet to `send_packet`, which stages it.
    """
    keypair = peer.keypairs.current
    if keypair is None or now >= keypair.reject_at:
        return 0
    counter = keypair.sending_counter
    if counter >= keypair.reject_after_messages:
        return 0
    keypair.sending_counter = counter + 1
    start = peer.plaintext_offset
    end = start + ((length - start + 15) & ~15)
    if end != length:
        packet[length:end] = _PADDINGS[end - length]
    size = end - start + TRANSPORT_OVERHEAD
    _pack_header(out, 0, TRANSPORT_DATA, keypair.remote_index, counter)
    keypair.encrypt_into(pack_nonce(counter), packet[start:end], None, out[TRANSPORT_HEADER_SIZE:size])
    peer.tx_packets += 1
    peer.tx_bytes += size
    peer.timers.data_sent(now)
    if now >= keypair.rekey_at or counter >= keypair.rekey_after_messages:
        send_handshake_initiation(peer, now)
    return size


def send_staged_packets(peer: Peer, now: float) -> None:
    """Seal the packets that were waiting for a session."""
    while peer.staged and peer.has_session(now):
        _queue_sealed(peer, peer.staged.popleft(), now)


def send_keepalive(peer: Peer, now: float) -> None:
    """Send an empty transport data message (section 6.5), or start a handshake, which serves the same purpose."""
    keypair = peer.keypairs.current
    if keypair is None or not keypair.can_send(now):
        send_handshake_initiation(peer, now)
        return
    message = memoryview(bytearray(TRANSPORT_OVERHEAD))
    counter = keypair.sending_counter
    keypair.sending_counter = counter + 1
    _pack_header(message, 0, TRANSPORT_DATA, keypair.remote_index, counter)
    keypair.encrypt_into(pack_nonce(counter), b"", None, message[TRANSPORT_HEADER_SIZE:])
    _queue_message(peer, bytes(message), now)
    if now >= keypair.rekey_at or counter >= keypair.rekey_after_messages:
        send_handshake_initiation(peer, now)


def send_handshake_initiation(peer: Peer, now: float, *, retry: bool = False) -> None:
    """Send a handshake initiation, at most one per REKEY_TIMEOUT (section 6.1).

    Args:
        peer: The receiver.
        now: Monotonic seconds.
        retry: Whether the retry timer requests it. Otherwise REKEY_ATTEMPT_TIME starts again (section 6.4).
    """
    device = peer.device
    if not retry:
        peer.timers.handshake_wanted()
    if now < peer.last_sent_handshake + device.timings.rekey_timeout:
        return
    if device.identity is None or peer.endpoint is None or not peer.handshake.static_static:
        return  # with a key of low order, anybody could answer the handshake
    peer.last_sent_handshake = now
    peer.forget_pending_initiation()
    local_index = device.new_index()
    message = create_initiation(
        device.identity, peer.handshake, local_index, random=device.random, unix_time=device.wall_clock(), now=now
    )
    device.pending_by_index[local_index] = peer
    peer.handshakes_initiated += 1
    peer.timers.handshake_initiated(now)
    _queue_message(peer, peer.cookie.add_macs(message.pack(), now), now)


def send_handshake_response(peer: Peer, consumed: OpenedInitiation, now: float) -> None:
    """Answer an initiation. The keypair waits as the next one until the initiator uses it."""
    device = peer.device
    local_index = device.new_index()
    response, keys = create_response(consumed, peer.handshake, local_index, device.random)
    keypair = Keypair(
        peer,
        keys,
        initiator=False,
        local_index=local_index,
        remote_index=response.receiver_index,
        handshake_started_at=now,
        timings=device.timings,
        now=now,
    )
    begin_session(peer, keypair, now)
    _queue_message(peer, peer.cookie.add_macs(response.pack(), now), now)


def begin_session(peer: Peer, keypair: Keypair, now: float) -> None:
    """Start using a new keypair (section 5.4.5)."""
    peer.device.keypairs_by_index[keypair.local_index] = keypair
    peer.keypairs.install(keypair)
    peer.timers.session_derived(now)


def send_cookie_reply(device: Device, message: Bytes, sender_index: int, endpoint: Hashable, now: float) -> None:
    """Answer a handshake message with a cookie (section 5.4.7), because this device is under load."""
    reply = device.cookie_checker.create_reply(message, sender_index, cookie_source(endpoint), now)
    device.cookie_replies_sent += 1
    device.queue_datagram(endpoint, reply.pack())


def _queue_sealed(peer: Peer, packet: Bytes, now: float) -> None:
    size = len(packet)
    room = memoryview(bytearray(size + PADDING_MULTIPLE))
    room[:size] = packet
    out = memoryview(bytearray(size + PADDING_MULTIPLE + TRANSPORT_OVERHEAD))
    length = seal_into(peer, room, size, out, now)
    peer.device.queue_datagram(peer.endpoint, bytes(out[:length]))


def _queue_message(peer: Peer, message: bytes, now: float) -> None:
    peer.tx_packets += 1
    peer.tx_bytes += len(message)
    peer.timers.any_authenticated_packet_sent(now)
    peer.device.queue_datagram(peer.endpoint, message)
