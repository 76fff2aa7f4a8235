"""What the control socket's requests do: change a WireGuard device and its sockets, or read their state."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Hashable
from typing import Final, Protocol, cast, get_args

from wgvsock.addresses import Address
from wgvsock.errors import ConfigurationError, TransportError
from wgvsock.transports.base import Link
from wgvsock.uapi.endpoints import EndpointText
from wgvsock.uapi.errors import UapiError
from wgvsock.uapi.protocol import NO_KEY, DeviceChange, DeviceState, PeerChange, PeerState
from wgvsock.wireguard import Device, Peer
from wgvsock.wireguard.primitives import is_weak

_ADDRESSES: Final = get_args(Address)

_log = logging.getLogger(__name__)


class Sockets(Protocol):
    """The two settings of a device that belong to its sockets."""

    @property
    def listen_port(self) -> int:
        """The port in use; 0: none."""
        ...

    @property
    def fwmark(self) -> int:
        """The mark of outgoing packets; 0: none."""
        ...

    async def set_listen_port(self, port: int) -> None:
        """Listen on another port from now on; 0: on one that the kernel chooses, or on none.

        Raises:
            TransportError: The port is in use; the old one stays.
        """
        ...

    def set_fwmark(self, mark: int) -> None:
        """Mark outgoing packets from now on (SO_MARK in socket(7)).

        Raises:
            TransportError: Not permitted.
        """
        ...


class DeviceControl:
    """A device as the control socket sees it.

    Args:
        device: What is controlled.
        sockets: Its transport's settings.
        endpoints: How endpoints are written.
        clock: Monotonic seconds.
        on_changed: Called after each change, so that the tunnel looks at the device again.
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

    def state(self) -> DeviceState:
        """Everything a get request answers."""
        return DeviceState(
            private_key=None if self._private_key == NO_KEY else self._private_key,
            listen_port=self._sockets.listen_port,
            fwmark=self._sockets.fwmark,
            peers=tuple(self._peer_state(peer) for peer in self._device.peers.values()),
        )

    async def apply(self, change: DeviceChange) -> None:
        """Carry out a set request: what can fail first, so that a refused request leaves everything as it was.

        Raises:
            UapiError: EINVAL for an endpoint or a key that cannot be, EADDRINUSE for sockets that cannot be changed.
        """
        endpoints = [self._check_peer(peer) for peer in change.peers]
        await self._change_sockets(change)
        now = self._clock()
        if change.private_key is not None:
            self._set_private_key(change.private_key, now)
        if change.replace_peers:
            for public_key in list(self._device.peers):
                self._device.remove_peer(public_key)
        for peer, endpoint in zip(change.peers, endpoints, strict=True):
            self._change_peer(peer, endpoint, now)
        self._on_changed()
        _log.debug("configuration changed; %d peers", len(self._device.peers))

    def _check_peer(self, change: PeerChange) -> Address | None:
        """Refuse what the core would refuse later on, and read the endpoint."""
        if is_weak(change.public_key) and not change.remove:
            raise UapiError(errno.EINVAL, "no handshake with this public key can be secure")
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
            return  # ``wg syncconf`` always sends it, and running sessions are to survive that
        self._device.set_private_key(None if private_key == NO_KEY else private_key, now)
        self._private_key = private_key

    def _change_peer(self, change: PeerChange, endpoint: Address | None, now: float) -> None:
        if change.public_key == self._device.public_key:
            return  # one configuration for every machine of a network lists this one too
        if change.remove:
            self._device.remove_peer(change.public_key)
            return
        peer = self._device.peers.get(change.public_key)
        if peer is None:
            if change.update_only:
                return
            peer = self._device.add_peer(change.public_key, now=now)
        if change.preshared_key is not None:
            peer.set_preshared_key(None if change.preshared_key == NO_KEY else change.preshared_key)
        if endpoint is not None:
            peer.set_endpoint(endpoint)
        _change_allowed_ips(peer, change)
        if change.persistent_keepalive is not None:
            peer.set_persistent_keepalive(change.persistent_keepalive, now)

    def _peer_state(self, peer: Peer) -> PeerState:
        return PeerState(
            public_key=peer.public_key,
            preshared_key=peer.preshared_key,
            endpoint=None if peer.endpoint is None else self._endpoints.format(_address(peer.endpoint)),
            last_handshake=peer.last_handshake,
            rx_bytes=peer.rx_bytes,
            tx_bytes=peer.tx_bytes,
            persistent_keepalive=peer.persistent_keepalive,
            allowed_ips=peer.allowed_ips,
        )


def _change_allowed_ips(peer: Peer, change: PeerChange) -> None:
    if change.replace_allowed_ips:
        peer.set_allowed_ips(())
    for allowed_ip in change.allowed_ips:
        if not allowed_ip.remove:
            peer.add_allowed_ip(allowed_ip.network)
        elif allowed_ip.network in peer.allowed_ips:
            peer.set_allowed_ips([network for network in peer.allowed_ips if network != allowed_ip.network])


def _clamp(private_key: bytes) -> bytes:
    """The form that every implementation shows, whatever was set (RFC 7748, section 5, decodeScalar25519)."""
    clamped = bytearray(private_key)
    clamped[0] &= 248
    clamped[31] &= 127
    clamped[31] |= 64
    return bytes(clamped)


def _address(endpoint: Hashable) -> Address:
    """Where an endpoint is: it is an address from the configuration, or a link that has delivered a message."""
    return endpoint if isinstance(endpoint, _ADDRESSES) else cast("Link", endpoint).address
