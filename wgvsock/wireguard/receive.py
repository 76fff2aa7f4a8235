"""Datagram -> IP packet, in the order in which a datagram passes the functions.

Transport data: keypair -> decrypt -> replay window -> confirm, roam, timers -> packet's length -> source check.
Handshake messages: size -> mac1 -> load and mac2 -> handshake.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wgvsock.errors import RemoteProtocolError
from wgvsock.virtio_net import check_header
from wgvsock.wireguard.constants import TRANSPORT_DATA, TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD
from wgvsock.wireguard.endpoints import cookie_source, is_connected, is_stranger, rate_limit_source
from wgvsock.wireguard.events import DropReason, EndpointChanged
from wgvsock.wireguard.keypair import Keypair
from wgvsock.wireguard.messages import (
    CookieReply,
    HandshakeInitiation,
    HandshakeResponse,
    TransportData,
    parse_message,
)
from wgvsock.wireguard.noise import (
    HandshakeRejectedError,
    Identity,
    consume_initiation,
    consume_response,
    open_initiation,
)
from wgvsock.wireguard.primitives import Bytes, InvalidTag
from wgvsock.wireguard.send import (
    begin_session,
    pack_nonce,
    send_cookie_reply,
    send_handshake_initiation,
    send_handshake_response,
    send_keepalive,
    send_staged_packets,
)
from wgvsock.wireguard.timers import NEVER

if TYPE_CHECKING:
    from wgvsock.wireguard.device import Device
    from wgvsock.wireguard.peer import Peer
    from wgvsock.wireguard.ratelimiter import RateLimiter, StrangerLimiter

_unpack_header: Final = TransportData.LAYOUT.unpack_from
_ipv4_length_and_source: Final = struct.Struct(">2xH8x4s").unpack_from
_ipv6_length_and_source: Final = struct.Struct(">4xH2x16s").unpack_from
_IPV4_HEADER_SIZE: Final = 20
_IPV6_HEADER_SIZE: Final = 40


def open_into(device: Device, datagram: memoryview, endpoint: Hashable, out: memoryview, now: float) -> int:
    """Process one datagram of any kind. Never raises, whatever it contains.

    Args:
        device: The receiving device.
        datagram: One complete message.
        endpoint: The datagram's source.
        out: At least packet_headroom + len(datagram) bytes. Written to even if 0 is returned.
        now: Monotonic seconds.

    Returns:
        Bytes of headroom and packet in `out`, or 0 for everything except an accepted packet.
    """
    size = len(datagram)
    if size < TRANSPORT_OVERHEAD:
        device.drop(DropReason.MALFORMED_MESSAGE, endpoint)
        return 0
    message_type, receiver_index, counter = _unpack_header(datagram)
    if message_type != TRANSPORT_DATA:
        _receive_handshake_message(device, Arrival(datagram, endpoint, now))
        return 0

    keypair = device.keypairs_by_index.get(receiver_index)
    if keypair is None:
        device.drop(DropReason.UNKNOWN_INDEX, endpoint)
        return 0
    peer = keypair.peer
    if now >= keypair.reject_at or counter >= keypair.reject_after_messages:
        device.drop(DropReason.EXPIRED_KEYPAIR, endpoint, peer)
        return 0
    plaintext_size = size - TRANSPORT_OVERHEAD
    if device.packet_headroom + plaintext_size > len(out):
        device.drop(DropReason.OVERSIZED, endpoint, peer)
        return 0
    start = peer.plaintext_offset
    try:
        keypair.decrypt_into(
            pack_nonce(counter), datagram[TRANSPORT_HEADER_SIZE:], None, out[start : start + plaintext_size]
        )
    except InvalidTag:
        device.drop(DropReason.INVALID_TAG, endpoint, peer)
        return 0
    if not keypair.replay_window.accept(counter):
        device.drop(DropReason.REPLAYED_COUNTER, endpoint, peer)
        return 0

    if endpoint is not peer.endpoint:
        _roam(peer, endpoint)
    peer.last_authenticated = now
    peer.rx_packets += 1
    peer.rx_bytes += size
    if keypair is peer.keypairs.next:
        _confirm_session(peer, keypair, now)
    if now >= keypair.last_minute_at and keypair is peer.keypairs.current:
        _refresh_session(peer, keypair, now)
    if not plaintext_size:
        device.authenticated_endpoint = endpoint
        peer.timers.any_authenticated_packet_received(now)
        return 0
    peer.timers.data_received(now)
    return _accept_packet(device, peer, endpoint, out, plaintext_size)


def _accept_packet(device: Device, peer: Peer, endpoint: Hashable, out: memoryview, plaintext_size: int) -> int:
    """Trim the padding from a decrypted packet, and check its header and source. Returns its length, or 0."""
    length: int
    source: bytes
    headroom = device.packet_headroom
    packet_size = plaintext_size
    with_header = False
    if peer.plaintext_offset == headroom:
        if headroom:
            out[:headroom] = bytes(headroom)
    elif out[0] >> 4:
        # A plain packet in the gso profile: its first nibble is an IP version, and a virtio_net_hdr's is 0.
        out[headroom : headroom + plaintext_size] = bytes(out[:plaintext_size])
        out[:headroom] = bytes(headroom)
    else:
        packet_size -= headroom
        with_header = True

    version = out[headroom] >> 4
    if version == 4 and packet_size >= _IPV4_HEADER_SIZE:
        length, source = _ipv4_length_and_source(out, headroom)
        dishonest = length < _IPV4_HEADER_SIZE
    elif version == 6 and packet_size >= _IPV6_HEADER_SIZE:
        length, source = _ipv6_length_and_source(out, headroom)
        length += _IPV6_HEADER_SIZE
        dishonest = False
    else:
        device.drop(DropReason.MALFORMED_PACKET, endpoint, peer)
        return 0
    if dishonest or length > packet_size:
        device.drop(DropReason.MALFORMED_PACKET, endpoint, peer)
        return 0

    # "A packet is accepted only if its source address routes back to the peer that sent it" (section 2). A peer that is
    # being replaced may still send from addresses that its successor has taken over.
    owner = device.allowed_ips.lookup(source)
    if owner is not peer and (owner is None or owner.predecessor is not peer):
        device.drop(DropReason.FORBIDDEN_SOURCE, endpoint, peer)
        return 0
    length += headroom
    if with_header and (fault := check_header(out[:length])) is not None:
        device.drop_bad_header(fault, endpoint, peer)
        return 0
    return length


def _roam(peer: Peer, endpoint: Hashable) -> None:
    """Send to the source of the last authenticated message from now on (section 2.1)."""
    old = peer.endpoint
    if endpoint != old:
        peer.endpoint = endpoint
        peer.device.emit(EndpointChanged(peer, old, endpoint))


def _confirm_session(peer: Peer, keypair: Keypair, now: float) -> None:
    """Start using our response's keypair: the initiator has used it, so it has the keys."""
    peer.keypairs.confirm()
    peer.handshake_completed(keypair, now)
    send_staged_packets(peer, now)


def _refresh_session(peer: Peer, keypair: Keypair, now: float) -> None:
    """Renew a session that is about to expire, once, because we started it and only receive (section 6.2)."""
    keypair.last_minute_at = NEVER
    send_handshake_initiation(peer, now)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A handshake message's bytes, its source, and its time of arrival."""

    datagram: Bytes
    endpoint: Hashable
    now: float


def _receive_handshake_message(device: Device, arrival: Arrival) -> None:
    identity = device.identity
    if identity is None:
        device.drop(DropReason.NO_IDENTITY, arrival.endpoint)
        return
    try:
        message = parse_message(arrival.datagram)
    except RemoteProtocolError:
        device.drop(DropReason.MALFORMED_MESSAGE, arrival.endpoint)
        return
    try:
        match message:
            case HandshakeInitiation():
                if _passes_macs(device, arrival, message.sender_index):
                    _receive_initiation(device, identity, message, arrival)
            case HandshakeResponse():
                if _passes_macs(device, arrival, message.sender_index):
                    _receive_response(device, identity, message, arrival)
            case CookieReply():
                _receive_cookie_reply(device, message, arrival)
    except HandshakeRejectedError as rejected:
        device.drop(rejected.reason, arrival.endpoint)


def _passes_macs(device: Device, arrival: Arrival, sender_index: int) -> bool:
    """Check mac1. Under load, also check mac2 and the rate of the source (section 5.3).

    A stream needs no cookie. It is connected, so its sender receives what is sent there, which is all that a cookie
    proves, and a returning peer would lose REKEY_TIMEOUT over it. Streams are distinguished by their number and by
    whether a peer has proved itself, because a flood may come from the same address.
    """
    datagram, endpoint, now = arrival.datagram, arrival.endpoint, arrival.now
    if not device.cookie_checker.check_mac1(datagram):
        device.drop(DropReason.INVALID_MAC1, endpoint)
        return False
    if not device.load.handshake_message(now):
        return True
    if is_stranger(endpoint):
        limiter: RateLimiter | StrangerLimiter = device.stranger_limiter
    elif is_connected(endpoint) or device.cookie_checker.check_mac2(datagram, cookie_source(endpoint), now):
        limiter = device.rate_limiter
    else:
        device.drop(DropReason.COOKIE_DEMANDED, endpoint)
        send_cookie_reply(device, datagram, sender_index, endpoint, now)
        return False
    if not limiter.allow(rate_limit_source(endpoint), now):
        device.drop(DropReason.RATE_LIMITED, endpoint)
        return False
    return True


def _receive_initiation(device: Device, identity: Identity, message: HandshakeInitiation, arrival: Arrival) -> None:
    opened = open_initiation(identity, message)
    peer = device.peers.get(opened.remote_static)
    if peer is None:
        device.drop(DropReason.UNKNOWN_PEER, arrival.endpoint)
        return
    consumed = consume_initiation(opened, peer.handshake, arrival.now)
    _authenticated(peer, arrival)
    send_handshake_response(peer, consumed, arrival.now)


def _receive_response(device: Device, identity: Identity, message: HandshakeResponse, arrival: Arrival) -> None:
    now = arrival.now
    peer = device.pending_by_index.get(message.receiver_index)
    if peer is None:
        device.drop(DropReason.UNEXPECTED_RESPONSE, arrival.endpoint)
        return
    keys, pending = consume_response(identity, peer.handshake, message)
    del device.pending_by_index[pending.local_index]
    keypair = Keypair(
        peer,
        keys,
        initiator=True,
        local_index=pending.local_index,
        remote_index=message.sender_index,
        handshake_started_at=pending.created_at,
        timings=device.timings,
        now=now,
    )
    _authenticated(peer, arrival)
    begin_session(peer, keypair, now)
    peer.handshake_completed(keypair, now)
    # The responder must not send before it has seen the new keypair in use (section 5). If there is nothing to send,
    # use it for a keepalive.
    if peer.staged:
        send_staged_packets(peer, now)
    else:
        send_keepalive(peer, now)


def _receive_cookie_reply(device: Device, message: CookieReply, arrival: Arrival) -> None:
    """Keep the cookie for the next handshake message, which the retry timer sends (section 5.4.7)."""
    peer = device.pending_by_index.get(message.receiver_index)
    if peer is None:
        keypair = device.keypairs_by_index.get(message.receiver_index)
        peer = keypair.peer if keypair is not None else None
    if peer is None or not peer.cookie.consume_reply(message, arrival.now):
        device.drop(DropReason.INVALID_COOKIE_REPLY, arrival.endpoint, peer)


def _authenticated(peer: Peer, arrival: Arrival) -> None:
    """Note that a handshake message has proved the peer's static key."""
    peer.device.authenticated_endpoint = arrival.endpoint
    _roam(peer, arrival.endpoint)
    peer.last_authenticated = arrival.now
    peer.rx_packets += 1
    peer.rx_bytes += len(arrival.datagram)
    peer.timers.any_authenticated_packet_received(arrival.now)
