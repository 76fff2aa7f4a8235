"""The relay's WireGuard session with its enclave: the peer, whether the tunnel is up, and when it is lost."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from wgvsock.addresses import IpNetwork, StreamAddress
from wgvsock.attestation.binding import check_wireguard_key
from wgvsock.attestation.verifier import AttestedEnclave
from wgvsock.provisioning import RETIREMENT
from wgvsock.relay.errors import HandshakeTimeoutError
from wgvsock.telemetry.logs import fields
from wgvsock.wireguard import Device, Event, HandshakeCompleted, Peer, Profile

SILENT_KEEPALIVES: Final = 3
"""Persistent keepalives that may be missing before the tunnel counts as down."""

_JUST_NOW: Final = 1e-6
"""Seconds. A loss noticed at this instant already counts as one, and a handshake begun at this instant is a new one."""

_log = logging.getLogger(__name__)


class Stream(Protocol):
    """The facts that the session needs about the link to the enclave."""

    @property
    def connected(self) -> bool:
        """Whether there is a stream now."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether an authenticated message has arrived over it."""
        ...


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The settings of a peer. The attestation decides which enclave it is."""

    endpoint: StreamAddress
    allowed_ips: tuple[IpNetwork, ...]
    persistent_keepalive: int
    profile: Profile


class Session:
    """Manages the one peer of a tunnel.

    Args:
        device: The WireGuard core.
        wake: Wakes the tunnel after a change to the core.
        stream: Returns the link to an endpoint.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        device: Device,
        *,
        wake: Callable[[], None],
        stream: Callable[[object], Stream | None],
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._wake = wake
        self._stream = stream
        self._clock = clock
        self._peer: Peer | None = None
        self._installed_at = -math.inf
        self._established = asyncio.Event()
        self._earlier_goes_on = False  # a session with earlier keys carries packets until the new one is up
        self._handshake_seconds = 0.0
        self._handshake_at = -math.inf
        self._lost_at: float | None = None
        self._retirements: dict[bytes, asyncio.TimerHandle] = {}

    @property
    def peer(self) -> Peer | None:
        """The attested enclave as a peer, or None if there is none."""
        return self._peer

    @property
    def is_established(self) -> bool:
        """Whether there is a session, with the keys that were installed last or still with the previous ones."""
        return self._peer is not None and (self._established.is_set() or self._earlier_goes_on)

    @property
    def handshake_age(self) -> float:
        """Seconds since the last handshake with the peer, or infinity before the first."""
        return self._clock() - self._handshake_at if self._peer is not None else math.inf

    @property
    def handshake_seconds(self) -> float:
        """How long the last handshake took, in seconds."""
        return self._handshake_seconds

    def install(
        self, attested: AttestedEnclave, preshared_key: bytes, private_key: bytes, settings: PeerSettings
    ) -> None:
        """Make the attested enclave the peer, and start a handshake with the new keys.

        The session with an earlier peer, or with the same peer and earlier keys, continues until the new one is up.

        Args:
            attested: The verifier's result.
            preshared_key: The WireGuard preshared key, 32 bytes.
            private_key: The relay's WireGuard private key, 32 bytes.
            settings: The settings of the peer.

        Raises:
            PublicKeyError: The enclave's key is of low order. The verifier already refuses such a key. The core would
                accept it, as every WireGuard does, and wait for a handshake that cannot complete.
        """
        key = attested.wireguard_public_key
        check_wireguard_key(key)
        now = self._clock()
        before = self._peer
        self._earlier_goes_on = self.is_established and not self.lost_for()
        self._device.set_private_key(private_key, now, keep_sessions=True)
        replaces = before.public_key if before is not None and before.public_key != key else None
        if retirement := self._retirements.pop(key, None):
            retirement.cancel()
        self._peer = self._device.add_peer(
            key,
            preshared_key=preshared_key,
            allowed_ips=() if replaces else settings.allowed_ips,
            endpoint=settings.endpoint,
            persistent_keepalive=settings.persistent_keepalive,
            profile=settings.profile,
            successor_of=replaces,
            now=now,
        )
        self._installed_at = now
        self._established.clear()
        self._lost_at = None
        self._peer.initiate_handshake(now)
        self._wake()

    async def establish(self, settings: PeerSettings, timeout: float) -> float:  # noqa: ASYNC109 - the point
        """Wait for the handshake. On failure, the peer is removed.

        Args:
            settings: The settings of the peer.
            timeout: Seconds to wait.

        Returns:
            The duration of the handshake in seconds.

        Raises:
            HandshakeTimeoutError: The handshake did not complete in time.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._established.wait()
        except TimeoutError:
            self.drop("it does not answer the handshake")
            raise HandshakeTimeoutError(
                "the attested enclave does not answer the WireGuard handshake",
                why=f"no handshake was completed within {timeout:g} s",
                fix="read the enclave's log, and check that the relay can reach the enclave's WireGuard port",
            ) from None
        assert self._peer is not None  # noqa: S101 - only `drop` clears it, and that ends the wait by its caller
        self._peer.set_allowed_ips(settings.allowed_ips)
        for key in self._device.peers.keys() - {self._peer.public_key} - self._retirements.keys():
            self._retirements[key] = asyncio.get_running_loop().call_later(RETIREMENT, self._retire, key)
        return self._handshake_seconds

    def drop(self, why: str) -> None:
        """Remove the peer, and any that it was about to replace, so that no packets pass."""
        for retirement in self._retirements.values():
            retirement.cancel()
        self._retirements.clear()
        for key in list(self._device.peers):
            self._device.remove_peer(key)
        self._earlier_goes_on = False
        if self._peer is not None:
            _log.info("the enclave is no longer a peer", extra=fields(why=why))
        self._peer = None
        self._established.clear()
        self._wake()

    def on_event(self, event: Event) -> None:
        """Handle an event from the WireGuard core. The tunnel calls this."""
        match event:
            case HandshakeCompleted(peer, _, duration) if peer is self._peer:
                self._handshake_seconds = duration
                self._handshake_at = self._clock()
                # A handshake that was in progress when the keys changed proves the old keys.
                if self._handshake_at - duration > self._installed_at - _JUST_NOW:
                    self._established.set()
                    self._earlier_goes_on = False
            case _:
                pass

    def lost_for(self) -> float:
        """Seconds since the tunnel was lost: the stream is not connected or authenticated, or the enclave is silent.

        Call it regularly, because the loss counts from the first call that notices it.

        Returns:
            The seconds; 0 if the tunnel is up or there is no peer.
        """
        now = self._clock()
        if self._peer is None or self._is_alive(self._peer, now):
            self._lost_at = None
            return 0.0
        if self._lost_at is None:
            self._lost_at = now
        return max(now - self._lost_at, _JUST_NOW)

    def _is_alive(self, peer: Peer, now: float) -> bool:
        stream = self._stream(peer.endpoint)
        if stream is None or not stream.connected or not stream.authenticated:
            return False
        patience = SILENT_KEEPALIVES * peer.persistent_keepalive
        return not patience or now - peer.last_authenticated <= patience

    def _retire(self, key: bytes) -> None:
        del self._retirements[key]
        self._device.remove_peer(key)
        self._wake()
