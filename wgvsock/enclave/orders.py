"""Carries out the orders of the provisioning state machine: apply settings, fetch a document, count an outcome."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from wgvsock.devices.nsm import NsmClient
from wgvsock.enclave.assignments import Assignments
from wgvsock.enclave.clock import EnclaveClock
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import EnclaveMachine
from wgvsock.provisioning import (
    AttestationNeeded,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    EnclaveEvent,
    ExchangeEnded,
    StrangersTurnedAway,
    TunnelConfig,
)
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.wireguard import Device

_log = logging.getLogger(__name__)


class Orders:
    """Handles one event at a time, because all of them change the same peer.

    Args:
        machine: Runs the calls to the security module.
        device: The WireGuard core, whose public key is attested.
        nsm: The Nitro Security Module.
        assignments: Changes the kernel and the WireGuard core.
        clock: Takes the relay's time.
        module_timeout: Seconds that a document may take.
        on_configured: Called with the interface's settings each time they change. While a relay has yet to prove
            itself, there may be two sets, and its own comes first.

    Attributes:
        link_up: Set once a relay has proved itself.
        attempts: Exchanges by outcome.
    """

    def __init__(
        self,
        machine: EnclaveMachine,
        device: Device,
        nsm: NsmClient,
        assignments: Assignments,
        clock: EnclaveClock,
        *,
        module_timeout: float,
        on_configured: Callable[[Sequence[TunnelConfig]], None],
    ) -> None:
        self._machine = machine
        self._device = device
        self._nsm = nsm
        self._assignments = assignments
        self._clock = clock
        self._module_timeout = module_timeout
        self._on_configured = on_configured
        self.link_up = asyncio.Event()
        self.attempts = Counter(ok=0, failed=0)

    async def carry_out(self, event: EnclaveEvent) -> None:
        """Carry out one event."""
        match event:
            case ConfigurationOffered():
                await self._apply(event)
            case AttestationNeeded():
                await self._attest(event)
            case ConfigurationActivated(assignment, replaced):
                self._clock.proved()
                await self._assignments.activate(assignment, replaced)
                self._on_configured([assignment.config])
                self.link_up.set()
            case ConfigurationRolledBack(assignment, restores):
                await self._assignments.roll_back(assignment, restores)
                self._on_configured([restores.config] if restores else [])
            case ExchangeEnded(_, None):
                self.attempts["ok"] += 1
                _log.info("the relay accepted this enclave")
            case ExchangeEnded(_, error):
                self.attempts["failed"] += 1
                _log.warning("a provisioning exchange failed", extra=fields(error=error))
            case StrangersTurnedAway(ends):
                for error, count in ends:
                    self.attempts["failed"] += count
                    _log.warning("a provisioning exchange failed", extra=fields(error=error, count=count))

    async def _apply(self, event: ConfigurationOffered) -> None:
        self._clock.hear(event.assignment.epoch_ms)
        try:
            applied_at = await self._assignments.apply(event.assignment, event.replaces)
        except WgvsockError as error:
            _log.error("the configuration cannot be applied", extra=error_fields(error))
            event.exchange.configuration_failed()
            return
        # The services on the tunnel's addresses must listen before the relay's first packet arrives.
        self._on_configured([event.assignment.config, *([event.replaces.config] if event.replaces else [])])
        public_key = self._device.public_key
        assert public_key is not None  # noqa: S101 - set before the provisioning port is open
        event.exchange.configuration_applied(public_key, applied_at)

    async def _attest(self, event: AttestationNeeded) -> None:
        try:
            document = await self._machine.ask_module(
                lambda: self._nsm.attest(nonce=event.nonce, public_key=event.public_key, user_data=event.user_data),
                timeout=self._module_timeout,
            )
        except WgvsockError as error:
            _log.error("cannot make the attestation document", extra=error_fields(error))
            event.exchange.attestation_failed()
        else:
            event.exchange.attestation_ready(document, self._machine.monotonic())
