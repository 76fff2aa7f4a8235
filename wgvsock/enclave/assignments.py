"""Applies what relays assign to this enclave to the kernel and to the WireGuard core.

A new assignment never displaces a working one before the relay has proved itself under it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from wgvsock.enclave.network import EnclaveNetwork
from wgvsock.errors import WgvsockError
from wgvsock.provisioning import PROFILE_GSO, RETIREMENT, Assignment
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.wireguard import Device, HandshakeCompleted, Peer, Profile

_log = logging.getLogger(__name__)


class Stream(Protocol):
    """The link to a peer. See `wgvsock.transports.link.StreamLink`."""

    def __hash__(self) -> int: ...

    @property
    def connected(self) -> bool:
        """Whether the stream is up."""
        ...

    def close(self, why: str) -> None:
        """Close the stream, giving the reason."""
        ...


class Assignments:
    """Carries out the orders of the provisioning state machine, one at a time.

    Args:
        device: The WireGuard core.
        network: The kernel's side.
        link_for: Returns the stream to one of the core's endpoints, or None.
        active: Returns the assignment in force, or None.
        clock: Monotonic seconds.
        wake: Called after a change to the core.
    """

    def __init__(
        self,
        device: Device,
        network: EnclaveNetwork,
        *,
        link_for: Callable[[object], Stream | None],
        active: Callable[[], Assignment | None],
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._device = device
        self._network = network
        self._link_for = link_for
        self._active = active
        self._clock = clock
        self._wake = wake
        self._applied_at = 0.0
        self._retirements: set[asyncio.TimerHandle] = set()

    def close(self) -> None:
        """Cancel everything that is scheduled."""
        for handle in self._retirements:
            handle.cancel()

    async def apply(self, assignment: Assignment, replaces: Assignment | None) -> float:
        """Set up an assignment beside the one in force.

        Returns:
            When that was done, in seconds on the clock.

        Raises:
            WgvsockError: The kernel refused.
        """
        if replaces is None:
            await self._network.apply(assignment.config)
        else:
            await self._network.add_addresses(assignment.config, replaces.config)
        self._install_peer(assignment, replaces)
        self._applied_at = self._clock()
        return self._applied_at

    def _install_peer(self, assignment: Assignment, replaces: Assignment | None) -> None:
        known = self._device.peers.get(assignment.relay_public_key)
        if known is not None and replaces is not None and replaces.relay_public_key == assignment.relay_public_key:
            known.set_preshared_key(assignment.preshared_key)
        else:
            self._device.add_peer(
                assignment.relay_public_key,
                preshared_key=assignment.preshared_key,
                allowed_ips=() if replaces else assignment.config.allowed_ips,
                persistent_keepalive=assignment.config.persistent_keepalive,
                profile=_profile(assignment),
                successor_of=replaces.relay_public_key if replaces else None,
                now=self._clock(),
            )
        self._wake()

    def is_proved_by(self, handshake: HandshakeCompleted) -> bool:
        """Whether a handshake began under the last assignment: only then does it use that preshared key."""
        return self._clock() - handshake.duration >= self._applied_at

    async def activate(self, assignment: Assignment, replaced: Assignment | None) -> None:
        """Drop what the assignment replaced, now that the relay has proved itself."""
        if replaced is not None:
            await self._try(self._network.apply(assignment.config))
            peer = self._device.peers.get(assignment.relay_public_key)
            if peer is not None:
                peer.set_allowed_ips(assignment.config.allowed_ips)
                peer.set_persistent_keepalive(assignment.config.persistent_keepalive, self._clock())
                peer.set_profile(_profile(assignment))
            if replaced.relay_public_key != assignment.relay_public_key:
                if assignment.is_of(replaced):
                    self._retire(replaced.relay_public_key)
                else:
                    self._displace(replaced.relay_public_key, peer)
            self._wake()
        _log.info("the link is up", extra=fields(replaced=replaced is not None))

    async def roll_back(self, assignment: Assignment, restores: Assignment | None) -> None:
        """Restore what was in force before, because the relay did not prove itself."""
        if restores is None or restores.relay_public_key != assignment.relay_public_key:
            self._device.remove_peer(assignment.relay_public_key)
        else:
            self._device.peers[assignment.relay_public_key].set_preshared_key(restores.preshared_key)
        self._wake()
        await self._try(self._network.apply(restores.config) if restores else self._network.clear())
        _log.warning("the relay did not prove itself: its configuration is rolled back")

    async def _try(self, change: Awaitable[None]) -> None:
        try:
            await change
        except WgvsockError as error:
            _log.error("part of the network is not set up", extra=error_fields(error))

    def _retire(self, key: bytes) -> None:
        def retire() -> None:
            self._retirements.discard(handle)
            active = self._active()
            if active is None or active.relay_public_key != key:
                self._device.remove_peer(key)
                self._wake()

        handle = asyncio.get_running_loop().call_later(RETIREMENT, retire)
        self._retirements.add(handle)

    def _displace(self, key: bytes, by: Peer | None) -> None:
        """Close the stream of a relay that another one replaced. It reconnects and learns why (`SupersededError`)."""
        displaced = self._device.peers.get(key)
        link = None if displaced is None else self._link_for(displaced.endpoint)
        self._device.remove_peer(key)
        _log.warning("another relay has replaced the one that was served")
        if link is not None and (by is None or link is not by.endpoint):
            link.close("another relay is served now")

    # For the provisioning state machine: whether another relay may take over.

    def last_authenticated(self) -> float:
        """When the active relay was last heard from, in seconds on the clock, or -inf if it never was."""
        peer = self._active_peer()
        return float("-inf") if peer is None else peer.last_authenticated

    def relay_connected(self) -> bool:
        """Whether the active relay's stream is up: an accepted stream has no link once it has ended."""
        peer = self._active_peer()
        link = None if peer is None else self._link_for(peer.endpoint)
        return link is not None and link.connected

    def _active_peer(self) -> Peer | None:
        active = self._active()
        return None if active is None else self._device.peers.get(active.relay_public_key)


def _profile(assignment: Assignment) -> Profile:
    return Profile.GSO if PROFILE_GSO in assignment.config.capabilities else Profile.PLAIN
