"""Carries out the control socket's requests: changes a WireGuard device and its sockets, or reads their state."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Final, Protocol, cast, get_args

from wgvsock.addresses import Address
from wgvsock.errors import ConfigurationError, TransportError
from wgvsock.transports.base import Link
from wgvsock.uapi.endpoints import EndpointText
from wgvsock.uapi.errors import UapiError
from wgvsock.uapi.protocol import NO_KEY, DeviceChange, DeviceState, PeerChange, PeerState
from wgvsock.uapi.turns import Turns
from wgvsock.wireguard import Device, Peer

_ADDRESSES: Final = get_args(Address)

_log = logging.getLogger(__name__)


class Sockets(Protocol):
    """The two settings of a device that belong to its sockets."""

    @property
    def listen_port(self) -> int:
        """The port in use, 0 for none."""
        ...

    @property
    def fwmark(self) -> int:
        """The mark of outgoing packets, 0 for none."""
        ...

    async def set_listen_port(self, port: int) -> None:
        """Listen on another port. 0 means a port that the kernel chooses, or none, depending on the transport.

        Raises:
            TransportError: The port is in use. The old one stays.
        """
        ...

    def set_fwmark(self, mark: int) -> None:
        """Mark outgoing packets from now on (SO_MARK in socket(7)).

        Raises:
            TransportError: It is not permitted.
        """
        ...


class DeviceControl:
    """A device as the control socket sees it.

    Args:
        device: The device to control.
        sockets: The settings of its transport.
        endpoints: Converts endpoints to and from text.
        clock: Monotonic seconds.
        on_changed: Called after each change, so that the tunnel applies it.
    """

    def __init__(
        self,
        device: Device,
        sockets: Sockets,
        endpoints: EndpointText,
        *,
        clock: Callable[[], float],
        on_changed: Callable[[], None],
    ) -> None:
        self._device = device
        self._sockets = sockets
        self._endpoints = endpoints
        self._clock = clock
        self._on_changed = on_changed
        self._private_key = NO_KEY

    async def state(self) -> DeviceState:
        """Everything that a get request returns. Do not call it while `apply` is running."""
        turns = Turns(self._clock)
        peers = []
        for peer in list(self._device.peers.values()):
            peers.append(peer_state(peer, self._endpoints))
            await turns.pause()
        return DeviceState(
            private_key=None if self._private_key == NO_KEY else self._private_key,
            listen_port=self._sockets.listen_port,
            fwmark=self._sockets.fwmark,
            peers=tuple(peers),
        )

    async def apply(self, change: DeviceChange) -> None:
        """Carry out a set request. The steps that can fail come first, so that a refused request changes nothing.

        The rest is done in turns, with packets in between. They see each peer either before or after its change: a peer
        is replaced in one step, and peers that the request does not name are removed last.

        Raises:
            UapiError: EINVAL for an invalid endpoint, EADDRINUSE for sockets that cannot be changed.
        """
        turns = Turns(self._clock)
        endpoints = []
        for peer in change.peers:
            endpoints.append(self._read_endpoint(peer))
            await turns.pause()
        await self._change_sockets(change)
        if change.private_key is not None:
            self._set_private_key(change.private_key, self._clock())
        replaced = dict.fromkeys(self._device.peers) if change.replace_peers else {}
        for peer, endpoint in zip(change.peers, endpoints, strict=True):
            if peer.public_key in replaced:
                del replaced[peer.public_key]
                peer = self._replace_peer(peer)  # noqa: PLW2901  # the part of the change that remains
            await self._change_peer(peer, endpoint, turns)
            await turns.pause()
        for public_key in replaced:
            self._device.remove_peer(public_key)
            await turns.pause()
        self._on_changed()
        _log.debug("configuration changed: %d peers", len(self._device.peers))

    def _read_endpoint(self, change: PeerChange) -> Address | None:
        if change.endpoint is None:
            return None
        try:
            return self._endpoints.parse(change.endpoint)
        except ConfigurationError as error:
            raise UapiError(errno.EINVAL, str(error)) from None

    async def _change_sockets(self, change: DeviceChange) -> None:
        try:
            if change.listen_port is not None and change.listen_port != self._sockets.listen_port:
                await self._sockets.set_listen_port(change.listen_port)
            if change.fwmark is not None and change.fwmark != self._sockets.fwmark:
                self._sockets.set_fwmark(change.fwmark)
        except TransportError as error:
            raise UapiError(errno.EADDRINUSE, str(error)) from None

    def _set_private_key(self, private_key: bytes, now: float) -> None:
        if private_key != NO_KEY:
            private_key = _clamp(private_key)
        if private_key == self._private_key:
            return  # ``wg syncconf`` always sends it, and running sessions must survive that
        self._device.set_private_key(None if private_key == NO_KEY else private_key, now)
        self._private_key = private_key

    def _replace_peer(self, change: PeerChange) -> PeerChange:
        """Replace a peer with the one that the request describes. Returns the part of the change that remains."""
        if change.remove or change.update_only:
            self._device.remove_peer(change.public_key)
            return change
        preshared_key = change.preshared_key or NO_KEY
        self._device.replace_peer(change.public_key, preshared_key=preshared_key, now=self._clock())
        return replace(change, replace_allowed_ips=True)

    async def _change_peer(self, change: PeerChange, endpoint: Address | None, turns: Turns) -> None:
        if change.public_key == self._device.public_key:
            return  # a configuration that all machines of a network share lists this one too
        if change.remove:
            self._device.remove_peer(change.public_key)
            return
        peer = self._device.peers.get(change.public_key)
        if peer is None:
            if change.update_only:
                return
            peer = self._device.add_peer(change.public_key, now=self._clock())
        if change.preshared_key is not None:
            peer.set_preshared_key(None if change.preshared_key == NO_KEY else change.preshared_key)
        if endpoint is not None:
            peer.set_endpoint(endpoint)
        if change.persistent_keepalive is not None:
            peer.set_persistent_keepalive(change.persistent_keepalive, self._clock())
        await _change_allowed_ips(peer, change, turns)


def peer_state(peer: Peer, endpoints: EndpointText) -> PeerState:
    """What a get request returns about a peer, including its preshared key."""
    return PeerState(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key,
        endpoint=None if peer.endpoint is None else endpoints.format(_address(peer.endpoint)),
        last_handshake=peer.last_handshake,
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
        persistent_keepalive=peer.persistent_keepalive,
        allowed_ips=peer.allowed_ips,
    )


async def _change_allowed_ips(peer: Peer, change: PeerChange, turns: Turns) -> None:
    """Change a peer's allowed IPs in turns, because it may have any number. Those that stay are never missing."""
    before = peer.allowed_ips if change.replace_allowed_ips else ()
    if before and before == tuple(None if ip.remove else ip.network for ip in change.allowed_ips):
        return  # most peers of a ``wg syncconf``
    replaced = dict.fromkeys(before)
    for allowed_ip in change.allowed_ips:
        replaced.pop(allowed_ip.network, None)
        if allowed_ip.remove:
            peer.remove_allowed_ip(allowed_ip.network)
        else:
            peer.add_allowed_ip(allowed_ip.network)
        await turns.pause()
    for network in replaced:
        peer.remove_allowed_ip(network)
        await turns.pause()


def _clamp(private_key: bytes) -> bytes:
    """The clamped form, which every implementation shows (RFC 7748, section 5, decodeScalar25519)."""
    clamped = bytearray(private_key)
    clamped[0] &= 248
    clamped[31] &= 127
    clamped[31] |= 64
    return bytes(clamped)


def _address(endpoint: Hashable) -> Address:
    """The address of an endpoint, which is an address from the configuration or a link that delivered a message."""
    return endpoint if isinstance(endpoint, _ADDRESSES) else cast("Link", endpoint).address
