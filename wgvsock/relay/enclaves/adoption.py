"""Puts configurations in force in one enclave's room: a reloaded one when it is due, published ports at once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from wgvsock.errors import WgvsockError
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.room import Room
from wgvsock.relay.orders import Outcome, Waiters
from wgvsock.relay.sections import PublishSettings
from wgvsock.relay.spec import EnclaveSpec


@dataclass(frozen=True, slots=True)
class Adopted:
    """A configuration that has come into force.

    Attributes:
        before: The specification before it.
        attests_again: Whether the enclave has to be attested under it.
        asked: Wait for the consequences.
    """

    before: EnclaveSpec
    attests_again: bool
    asked: Waiters


class Adoption:
    """The configuration of one room.

    Args:
        room: The room.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._pending: tuple[EnclaveSpec, TunnelConfig] | None = None
        self._asked = Waiters()
        self._applying = asyncio.Lock()

    @property
    def is_due(self) -> bool:
        """Whether a configuration is not yet in force."""
        return self._pending is not None

    @property
    def latest(self) -> tuple[EnclaveSpec, TunnelConfig]:
        """The configuration that is due, otherwise the one in force."""
        return self._pending or (self._room.spec, self._room.tunnel_config)

    def ask(self, spec: EnclaveSpec, tunnel_config: TunnelConfig) -> Outcome:
        """Have a configuration put in force by the next `apply`."""
        self._pending = spec, tunnel_config
        return self._asked.add()

    async def publish(self, ports: tuple[PublishSettings, ...], *, draining: bool = False) -> None:
        """Publish these ports now and no others, also under a configuration that is due.

        Args:
            ports: The ports.
            draining: Whether another enclave serves new clients.

        Raises:
            WgvsockError: The rules were refused.
        """

        def publishing(spec: EnclaveSpec) -> EnclaveSpec:
            return replace(spec, nat=replace(spec.nat, publish=ports), draining=draining)

        async with self._applying:
            if self._pending is not None:
                due, tunnel_config = self._pending
                self._pending = publishing(due), tunnel_config
            await self._room.put_in_force(publishing(self._room.spec), self._room.tunnel_config)

    async def apply(self) -> Adopted | None:
        """Put a configuration that is due in force. Returns None if there is none, or if it was refused."""
        async with self._applying:
            if self._pending is None:
                return None
            (new, tunnel_config), self._pending = self._pending, None
            asked, self._asked = self._asked, Waiters()
            room, old, old_tunnel_config = self._room, self._room.spec, self._room.tunnel_config
            try:
                await room.put_in_force(new, tunnel_config)
            except WgvsockError as error:
                room.complain("the configuration was not reloaded", error)
                # The cause may be the machine, for example if it has lost IPv6. The uplink keeps trying and reports it.
                with contextlib.suppress(WgvsockError):
                    await room.put_in_force(old, old_tunnel_config)
                asked.settle(error)
                return None
        return Adopted(old, tunnel_config != old_tunnel_config or new.attestation != old.attestation, asked)
