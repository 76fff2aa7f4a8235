"""Attends one enclave: launches, attests and provisions it, and maintains its tunnel and uplink until the end.

::

    STARTING -> PROVISIONING -> HANDSHAKING -> READY        (a re-attestation that succeeds stays READY)
                     ^               ^           |
                     +--- stream lost, refused --+
                                     |           |
                                SUPERSEDED <-----+      (a newer relay with our signing key serves the enclave)

One task (`_attend`) owns this state. `wgvsock.relay.enclaves.trust` decides what a refusal means.
"""

from __future__ import annotations

import asyncio
import logging
import random as pseudorandom
from typing import Final, NoReturn

from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.verifier import Verifier
from wgvsock.errors import AttestationError, ProvisioningError, TransportError, WgvsockError
from wgvsock.provisioning import PROFILE_GSO, EnclaveProvisioned, TunnelConfig
from wgvsock.provisioning.errors import ConnectionLostError, ExchangeTimeoutError, NotNowError
from wgvsock.relay.enclaves.adoption import Adoption
from wgvsock.relay.enclaves.attempts import Attempts
from wgvsock.relay.enclaves.interface import enclave_hosts
from wgvsock.relay.enclaves.room import Room
from wgvsock.relay.enclaves.session import PeerSettings
from wgvsock.relay.enclaves.trust import STEPPED_BACK_PAUSE, Trust, Verdict, judge
from wgvsock.relay.orders import Outcome
from wgvsock.relay.sections import PublishSettings
from wgvsock.relay.snapshots import Attestation, EnclaveSnapshot, Readiness, State
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.runtime.backoff import Backoff
from wgvsock.runtime.tasks import first_of, wait_for_event
from wgvsock.system.nitro_cli import NitroCliError
from wgvsock.telemetry.status import counters, wireguard_status
from wgvsock.transports.errors import ConnectError, VsockUnavailableError
from wgvsock.wireguard import Profile
from wgvsock.wireguard.primitives import generate_private_key, public_key

WATCH_INTERVAL: Final = 0.25
"""Seconds between two checks of the stream, and thus the longest delay before a loss is noticed."""

NO_PLACE_DELAY: Final = 0.1
"""Seconds before the relay asks again when the enclave works but had no free connection, because others crowd its port.
Each attempt competes with theirs, and one has to succeed before the last attestation expires."""

_NO_PLACE: Final = (NotNowError, ConnectionLostError, ConnectError)
"""The errors in that case: the enclave said so, dropped the connection, or its kernel refused it."""

_log = logging.getLogger(__name__)


class _ConfigurationChangedError(Exception):
    """The current attempt was begun under a configuration that is no longer in force."""


class Attendant:
    """Serves one enclave. Call `open`, `serve` and `close` once each, in the event loop's thread.

    Attributes:
        room: The enclave's room.
        trust: The last attestation.
        state: State of the service.
        superseded: Whether it has stepped back for a newer relay.
        exit_status: The application's exit status if its end ended `serve`; otherwise None.
        leaves_rules: Whether the closed packet filter is left in place for the next relay of this name.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.state = State.STARTING
        self.trust = Trust()
        self._machine = room.machine
        self._launcher = room.launcher
        self._backoff = Backoff(pseudorandom.random)
        self._stop = asyncio.Event()
        self._attention = asyncio.Event()  # wakes the attending task
        self._keep_flows = False
        self.leaves_rules = False
        self.exit_status: int | None = None
        self._adoption = Adoption(room)
        self._interrupted = False  # the tunnel was down at the last check
        self.superseded = False
        self._attestation: Attestation | None = None
        self._attempts = Attempts(room.spec.name, room.judgements)

    # Orders.

    def stop(self, *, keep_flows: bool = False) -> None:
        """End `serve`.

        Args:
            keep_flows: Another relay of the same name starts right after this one. Leave the closed packet filter in
                place, so that the kernel does not reset the enclave's connections in between.
        """
        self._keep_flows = keep_flows
        self._stop.set()

    def reattest(self) -> Outcome:
        """Attest the enclave again now."""
        _log.info("attestation was requested", extra=self.room.fields())
        self._demand_attestation()
        return self._attempts.next_outcome()

    def adopt(self, spec: EnclaveSpec, tunnel_config: TunnelConfig) -> Outcome:
        """Put a configuration in force soon, with the result of `Room.settings_for` for it."""
        self._attention.set()
        return self._adoption.ask(spec, tunnel_config)

    async def publish(self, ports: tuple[PublishSettings, ...], *, draining: bool = False) -> None:
        """See `Adoption.publish`."""
        await self._adoption.publish(ports, draining=draining)

    # The service.

    @property
    def spec(self) -> EnclaveSpec:
        """The specification of the enclave."""
        return self.room.spec

    @property
    def latest(self) -> EnclaveSpec:
        """The specification that is due, otherwise the one in force."""
        spec, _ = self._adoption.latest
        return spec

    @property
    def last_error(self) -> WgvsockError | None:
        """The error that ended the last attempt, or None if it succeeded."""
        return self._attempts.last_error

    async def open(self) -> None:
        """See `Room.open`."""
        await self.room.open()

    async def serve(self) -> None:
        """Attend the enclave until `stop`.

        Raises:
            WgvsockError: The enclave can no longer be attended.
        """
        room = self.room
        try:
            watching = room.uplink.watch(self._follow_uplink)
            ends = (self._attend(), watching, room.path.run(), room.tunnel.wait_ended())
            await first_of(*ends, self._application_ended(), self._stop.wait())
        except WgvsockError:
            self._enter(State.FAILED)
            raise
        self._enter(State.STOPPING)
        await (room.uplink.leave() if self._keep_flows else room.uplink.part())
        self.leaves_rules = self._keep_flows

    async def close(self) -> None:
        """Revert all changes, however far `open` and `serve` got."""
        # After this relay has stepped back, the enclave belongs to the newer one.
        terminate = not self._keep_flows and not self.superseded
        await self.room.close(terminate=terminate, leave_rules=self.leaves_rules)

    async def _application_ended(self) -> None:
        """Return when the application has ended and its end is to end the service."""
        self.exit_status = await self.room.reports.run(lambda: self.spec.application.on_exit == "stop")
        _log.info("the application has ended", extra=self.room.fields(status=self.exit_status))

    # The attending task: attest, watch, attest again.

    async def _attend(self) -> None:
        while True:
            await self._adopt()
            self._attempts.begin()
            try:
                await self._launch()
                await self._attest()
            except _ConfigurationChangedError:
                continue
            except (AttestationError, ProvisioningError, TransportError, NitroCliError) as error:
                condemned = await self._sentence(error) is Verdict.CONDEMN and self._launcher is not None
                if condemned or isinstance(error, VsockUnavailableError):
                    raise
            else:
                self._backoff.reset()
            if self.room.session.peer is not None:
                await self._watch()
            else:
                pause = STEPPED_BACK_PAUSE if self.superseded else self._backoff.next_delay()
                await wait_for_event(self._attention, pause)

    async def _sentence(self, error: WgvsockError) -> Verdict:
        """Apply the consequences of a failed attempt to the tunnel, and log them."""
        now = self._machine.monotonic()
        has_peer = self.room.session.peer is not None
        verdict = judge(
            error,
            trusted=has_peer and now < self.trust.until,
            alive=has_peer and not self.room.session.lost_for(),
            lost=self._is_lost(),
        )
        self._attempts.fail(error, verdict.value)
        if verdict is Verdict.KEEP:
            crowded = isinstance(error, _NO_PLACE)
            self.trust.attest_by = now + (NO_PLACE_DELAY if crowded else self._backoff.next_delay())
        else:
            self.superseded = self.superseded or verdict is Verdict.STEP_BACK
            await self._give_up(verdict.value)
        return verdict

    async def _launch(self) -> None:
        """Make sure that the enclave runs, if this relay launches it."""
        if self._launcher is None or self.superseded:
            return
        if self._launcher.enclave is None:
            await self._launcher.start()
        elif not await self._launcher.is_running():
            _log.warning("the enclave has ended", extra=self.room.fields(enclave_id=self._launcher.enclave.enclave_id))
            await self._launcher.restart()

    async def _attest(self) -> None:
        """Carry out one exchange and one handshake, and open the uplink."""
        if self.room.session.peer is None and not self.superseded:
            self._enter(State.PROVISIONING)
        self.trust.demanded = False
        spec, tunnel_config = self.room.target(), self.room.tunnel_config
        private_key = generate_private_key(self._machine.random)
        provisioned = await self._ask(spec, tunnel_config, public_key(private_key))
        if self.room.session.peer is None:
            self._enter(State.HANDSHAKING)
        settings = PeerSettings(
            endpoint=spec.enclave.address,
            allowed_ips=enclave_hosts(spec),
            persistent_keepalive=tunnel_config.persistent_keepalive,
            profile=Profile.GSO if PROFILE_GSO in provisioned.capabilities else Profile.PLAIN,
        )
        self.room.session.install(provisioned.attested, provisioned.preshared_key, private_key, settings)
        seconds = await self.room.session.establish(settings, self.room.provisioner.deadlines.handshake)
        await self.room.uplink.open()
        self._believe(provisioned, seconds)

    async def _ask(self, spec: EnclaveSpec, tunnel_config: TunnelConfig, own_key: bytes) -> EnclaveProvisioned:
        """Carry out one exchange. It is abandoned if the present tunnel has to close in the meantime."""
        enclave = None if self._launcher is None else self._launcher.enclave
        exchange = self.room.provisioner.provision(
            spec,
            tunnel_config,
            own_key,
            launched_cid=None if enclave is None else enclave.cid,
            # After a loss of the stream, another enclave may have replaced this one.
            attested_before=None if self.room.session.lost_for() else self.trust.module_id,
        )
        return await first_of(exchange, self._overtaken())

    async def _overtaken(self) -> NoReturn:
        """Raise when the present tunnel is lost or no longer trusted, or when another configuration is pending."""
        session = self.room.session
        while not self._adoption.is_due:
            if session.peer is not None and (self._is_lost() or self._machine.monotonic() >= self.trust.until):
                raise ExchangeTimeoutError("the tunnel was lost during the exchange, or its last attestation expired")
            await asyncio.sleep(WATCH_INTERVAL)
        raise _ConfigurationChangedError

    def _believe(self, provisioned: EnclaveProvisioned, handshake_seconds: float) -> None:
        settings = self.room.spec.provisioning
        attested = provisioned.attested
        now = self._machine.monotonic()
        self.trust.grant(attested.module_id, now, period=settings.reattest_every, grace=settings.grace)
        self.superseded = False
        self.room.follow(attested.module_id)
        if self._launcher is not None and not self.room.application.died_young:
            self._launcher.proved()
        self._attempts.succeed(attested)
        took, capabilities = self.room.provisioner.took, tuple(provisioned.capabilities)
        self._attestation = Attestation(attested, capabilities, handshake_seconds, took, now)
        _log.info(
            "the enclave is attested and the tunnel is up",
            extra=self.room.fields(module_id=attested.module_id, handshake_ms=handshake_seconds * 1000),
        )
        self._enter(State.READY)

    async def _watch(self) -> None:
        """Return when the enclave has to be attested again."""
        while (due_in := self.trust.attest_by - self._machine.monotonic()) > 0:
            await wait_for_event(self._attention, min(due_in, WATCH_INTERVAL))
            await self._adopt()
            now, lost_for = self._machine.monotonic(), self.room.session.lost_for()
            if self._is_lost():
                await self._give_up("the enclave is lost")
                return
            if now >= self.trust.until:
                await self._give_up("it was not attested again in time")
                return
            self.trust.observe(now, lost_for)
            was_interrupted, self._interrupted = self._interrupted, lost_for > 0
            if was_interrupted and not self._interrupted:
                await self.room.uplink.forgive_interruption()

    def _is_lost(self) -> bool:
        return self.room.session.lost_for() > self.room.spec.provisioning.reattest_after_loss

    async def _give_up(self, why: str) -> None:
        """Remove the peer, close the uplink, and enter a state that is not ready."""
        self.room.drop_peer(why)
        self.trust.revoke()
        self._attestation = None
        self._interrupted = False
        await self.room.uplink.close()
        self._enter(State.SUPERSEDED if self.superseded else State.PROVISIONING)

    def _demand_attestation(self) -> None:
        self.trust.demand(self._machine.monotonic(), grace=self.room.spec.provisioning.grace)
        self._attention.set()

    def _enter(self, state: State) -> None:
        if state is not self.state:
            _log.info("state", extra=self.room.fields(old=self.state.value, new=state.value))
            self.state = state

    async def _adopt(self) -> None:
        """Put a reloaded configuration in force."""
        if (adopted := await self._adoption.apply()) is None:
            return
        new = self.room.spec
        self.trust.attest_by = min(self.trust.attest_by, self._machine.monotonic() + new.provisioning.reattest_every)
        if adopted.attests_again:
            self._demand_attestation()
        changes = self.room.fields(changed=new != adopted.before, attests_again=adopted.attests_again)
        _log.info("the configuration was reloaded", extra=changes)
        await self._judge_again(adopted.before)
        adopted.asked.settle(None)

    async def _judge_again(self, old: EnclaveSpec) -> None:
        """Close the tunnel at once if the new policy would have refused the enclave."""
        if self._attestation is None or self.room.spec.attestation == old.attestation:
            return
        attestation = self.room.target().attestation
        if not set(old.attestation.root_sha256) <= set(attestation.root_sha256):
            await self._give_up("an attestation root is no longer accepted")
            return
        try:
            Verifier(attestation.policy()).check_attested(self._attestation.enclave, attestation.expectations())
        except RejectedDocumentError as error:
            self._attempts.fail(error, Verdict.CONDEMN.value)
            await self._give_up(Verdict.CONDEMN.value)

    def _follow_uplink(self) -> None:
        """Update the enclave's settings after a change of the uplink or of resolv.conf."""
        spec, settings = self._adoption.latest
        try:
            tunnel_config = self.room.follow_machine(spec)
        except WgvsockError as error:
            self.room.complain("the enclave keeps its settings", error)
            return
        if tunnel_config != settings:
            self.adopt(spec, tunnel_config)

    def readiness(self) -> Readiness:
        """Whether packets may pass, and if not, why."""
        attested = self._attestation is not None and self._machine.monotonic() < self.trust.until
        return self.room.readiness(attested=attested)

    def snapshot(self) -> EnclaveSnapshot:
        """The state of the enclave's service at this moment."""
        now = self._machine.monotonic()
        is_open = self.room.is_open
        is_attested = self._attestation is not None
        return EnclaveSnapshot(
            name=self.room.spec.name,
            state=self.state,
            readiness=self.readiness(),
            address=str(self.room.target().enclave.address),
            launched=None if self._launcher is None else self._launcher.enclave,
            attestation=self._attestation,
            root_is_aws=not self.room.spec.attestation.has_foreign_root,
            debug_allowed=self.room.spec.attestation.allow_debug,
            attempts=dict(self._attempts.counts),
            attested_for=0.0 if self._attestation is None else now - self._attestation.at,
            next_attestation=max(0.0, self.trust.attest_by - now) if is_attested else 0.0,
            trusted_for=max(0.0, self.trust.until - now) if is_attested else 0.0,
            error=self._attempts.last_error,
            wireguard=wireguard_status(self.room.device, self.room.spec.interface.name, now) if is_open else None,
            counters=counters(self.room.tunnel.statistics()) if is_open else None,
            path=self.room.path.snapshot() if is_open else None,
            application=self.room.application.snapshot(),
            clock_offset=self.room.application.clock_offset,
            processor=self.room.application.processor_snapshot(),
            uplink=self.room.uplink.snapshot() if is_open else None,
            dns=self.room.names.snapshot() if is_open else None,
            refusal=self._attempts.refusal,
        )
