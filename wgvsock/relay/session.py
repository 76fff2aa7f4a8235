"""The relay's WireGuard session with its enclave: who is the peer, is the tunnel alive, when is it gone."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from wgvsock.addresses import StreamAddress
from wgvsock.attestation.verifier import AttestedEnclave
from wgvsock.relay.errors import HandshakeTimeoutError
from wgvsock.settings import IpNetwork
from wgvsock.telemetry.logs import fields
from wgvsock.wireguard import Device, Event, HandshakeCompleted, Peer, Profile

RETIREMENT: Final = 5.0
"""Seconds for which packets that a replaced peer sent before the change are still accepted."""

SILENT_KEEPALIVES: Final = 3
"""Persistent keepalives of the enclave that may fail to come before the tunnel counts as dead."""

_JUST_NOW: Final = 1e-6
"""Seconds; a loss that was noticed this instant is a loss already, a handshake that began this instant is a new one."""

_log = logging.getLogger(__name__)


class Stream(Protocol):
    """What the session has to know of the link to the enclave."""

    @property
    def connected(self) -> bool:
        """Whether there is a stream now."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether an authenticated message has come over it."""
        ...


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What the relay decides about its peer; the attestation decides who it is."""

    endpoint: StreamAddress
    allowed_ips: tuple[IpNetwork, ...]
    persistent_keepalive: int
    profile: Profile


class Session:
    """Holds the one peer of a relay.

    Args:
        device: The WireGuard core.
        wake: Has the tunnel carry out what was changed in the core.
        stream: The link to an endpoint.
        clock: Monotonic seconds.
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
        self._handshake_seconds = 0.0
        self._handshake_at = -math.inf
        self._lost_at: float | None = None
        self._retirements: dict[bytes, asyncio.TimerHandle] = {}

    @property
    def peer(self) -> Peer | None:
        """The attested enclave's peer; None: there is none."""
        return self._peer

    @property
    def is_established(self) -> bool:
        """Whether the peer has proved its keys since it was installed."""
        return self._peer is not None and self._established.is_set()

    @property
    def handshake_age(self) -> float:
        """Seconds since the last handshake with the peer; infinite before the first."""
        return self._clock() - self._handshake_at if self._peer is not None else math.inf

    def install(
        self, attested: AttestedEnclave, preshared_key: bytes, private_key: bytes, settings: PeerSettings
    ) -> None:
        """Make the attested enclave the peer, and start a handshake under the new keys.

        The session with an earlier peer, or with the same one under earlier keys, goes on until the new one is there.
        """
        now = self._clock()
        before = self._peer
        self._device.set_private_key(private_key, now, keep_sessions=True)
        key = attested.wireguard_public_key
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
        """Wait for the handshake; how long it took, in seconds. On failure the peer is removed.

        Raises:
            HandshakeTimeoutError: It did not complete in time.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._established.wait()
        except TimeoutError:
            self.drop("it answers no handshake")
            raise HandshakeTimeoutError(
                "the attested enclave answers no WireGuard handshake",
                why=f"none was completed within {timeout:g} s",
                fix="read the enclave's log; check that nothing stands between relay and enclave's WireGuard port",
            ) from None
        assert self._peer is not None  # noqa: S101 - only `drop` clears it, and that ends the wait by its caller
        self._peer.set_allowed_ips(settings.allowed_ips)
        for key in self._device.peers.keys() - {self._peer.public_key} - self._retirements.keys():
            self._retirements[key] = asyncio.get_running_loop().call_later(RETIREMENT, self._retire, key)
        return self._handshake_seconds

    def drop(self, why: str) -> None:
        """Remove the peer, and any that it was to replace: nothing passes any more."""
        for retirement in self._retirements.values():
            retirement.cancel()
        self._retirements.clear()
        for key in list(self._device.peers):
            self._device.remove_peer(key)
        if self._peer is not None:
            _log.info("the enclave is no peer any more", extra=fields(why=why))
        self._peer = None
        self._established.clear()
        self._wake()

    def on_event(self, event: Event) -> None:
        """For the tunnel: what the core reports."""
        match event:
            case HandshakeCompleted(peer, _, duration) if peer is self._peer:
                self._handshake_seconds = duration
                self._handshake_at = self._clock()
                # One that was under way when the keys changed proves the old ones.
                if self._handshake_at - duration > self._installed_at - _JUST_NOW:
                    self._established.set()
            case _:
                pass

    def lost_for(self) -> float:
        """Seconds since the stream was last both there and authenticated, or since the enclave fell silent; 0: alive.

        To be asked regularly: the loss is counted from the first time that it is seen.
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
