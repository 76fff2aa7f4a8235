"""The relay: attests and provisions its enclave, keeps the tunnel and the way to the world, takes everything back.

::

    STARTING -> PROVISIONING -> HANDSHAKING -> READY
                     ^                           |
                     +--- stream lost, refused --+      (a re-attestation that succeeds stays READY)

One task (`_attend`) owns this state. Everything it changes on the machine stands in a `Journal`: it is taken back when
the relay stops, and by the next start after a crash.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random as pseudorandom
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from wgvsock.addresses import UnixAddress
from wgvsock.devices.tun import Tun, open_tun
from wgvsock.errors import AttestationError, ProvisioningError, TransportError, WgvsockError
from wgvsock.provisioning import PROFILE_GSO, Deadlines, EnclaveProvisioned, TunnelConfig
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.errors import ReloadError
from wgvsock.relay.health import Readiness, State, live
from wgvsock.relay.launcher import Launcher
from wgvsock.relay.nat import Nat, make_ruleset
from wgvsock.relay.network import (
    Uplink,
    enable_forwarding,
    enclave_hosts,
    find_uplink,
    make_tunnel_config,
    set_up_tunnel,
)
from wgvsock.relay.provisioner import Provisioner
from wgvsock.relay.session import PeerSettings, Session
from wgvsock.relay.signing import load_signing_seed
from wgvsock.system import netfilter, netlink, resolver
from wgvsock.system.journal import Journal
from wgvsock.system.netfilter import Netfilter, Ruleset
from wgvsock.system.netlink import Netlink, open_netlink
from wgvsock.system.nitro_cli import NitroCliError
from wgvsock.system.tasks import first_of, wait_for_event
from wgvsock.telemetry.endpoint import Answer, Endpoint, Route, as_json
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.status import SCHEMA, counters, key_text, metrics, wireguard_status
from wgvsock.transports.dialler import Backoff
from wgvsock.transports.stream import StreamTransport
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.virtio_net import HEADER_LENGTH
from wgvsock.wireguard import Device, Profile, Timings
from wgvsock.wireguard.primitives import generate_private_key, public_key

WATCH_INTERVAL: Final = 0.25
"""Seconds between two looks at the stream: a loss is noticed with this delay at most."""

_FINAL_CHECKS: Final = ("pcr.", "module_id.")
"""What fails these is other code than was launched, and will not become it by waiting. Any other refusal may come from
a clock that is off, or from whoever sits on the vsock, and must not end an enclave that works."""

_log = logging.getLogger(__name__)


class RelaySupervisor:
    """Runs one relay; `run` once, from its own event loop's thread.

    Args:
        config: What the operator wants.
        reload_config: Reads the configuration again, for `reload`.
        launcher: Launches the enclave; None: it runs already.
        timings: The WireGuard core's limits.
        deadlines: Of provisioning; by default those of the configuration.
        random: Entropy for every key, nonce and ephemeral.
        clock: Monotonic seconds, the event loop's.
        watch_interval: See `WATCH_INTERVAL`.
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        reload_config: Callable[[], RelayConfig] | None = None,
        launcher: Launcher | None = None,
        timings: Timings | None = None,
        deadlines: Deadlines | None = None,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        watch_interval: float = WATCH_INTERVAL,
    ) -> None:
        self._config = config
        self._reload_config = reload_config
        self._launcher = launcher
        self._deadlines = deadlines
        self._random = random
        self._watch_interval = watch_interval
        self._clock = clock
        self._journal = Journal(
            config.runtime_directory,
            config.name,
            netlink.performers() | netfilter.performers() | resolver.performers(),
        )
        headroom = HEADER_LENGTH if "gso" in config.interface.profiles else 0
        self._device = Device(
            random=random, wall_clock=time.time_ns, timings=timings or Timings(), packet_headroom=headroom
        )
        self._backoff = Backoff(pseudorandom.random)
        self._state = State.STARTING
        self._stop = asyncio.Event()
        self._attention = asyncio.Event()  # somebody wants the attending task to look now
        self._keep_flows = False
        self._leaves_rules = False  # to the next relay of this name
        self._adopting: tuple[RelayConfig, TunnelConfig] | None = None  # a reloaded configuration, not yet in force
        self._demanded = False  # somebody asked for an attestation since the present exchange began
        self._attest_by = 0.0  # when the next attestation is due, and
        self._trusted_until = 0.0  # how long the present one lasts if that fails
        self._attested: dict[str, Any] | None = None
        self._attempts = {"ok": 0, "failed": 0, "rejected": 0}
        self._last_error: WgvsockError | None = None
        # Made by `run`:
        self._netlink: Netlink
        self._tunnel: Tunnel
        self._session: Session
        self._nat: Nat
        self._provisioner: Provisioner
        self._uplink: Uplink
        self._tunnel_config: TunnelConfig
        self._forwards_others = False

    # For signal handlers and the control socket.

    def stop(self, *, keep_flows: bool = False) -> None:
        """End `run`.

        Args:
            keep_flows: Another relay of the same name starts right after: leave the closed packet filter behind, so
                that the kernel does not reset the connections of the enclave in between.
        """
        self._keep_flows = keep_flows
        self._stop.set()

    def reattest(self) -> None:
        """Attest the enclave again now."""
        _log.info("attestation is asked for")
        self._demand_attestation()

    def reload(self) -> None:
        """Read the configuration again and apply what is different; on an error everything stays as it is."""
        if self._reload_config is None:
            return
        try:
            new = self._reload_config()
            if key := self._config.restart_needed_for(new):
                raise ReloadError(
                    "cannot reload the configuration", why=f'"{key}" has changed', fix="restart the relay for that"
                )
            self._adopting = new, make_tunnel_config(new, self._uplink, resolver.read())
        except WgvsockError as error:
            _log.error("the configuration was not reloaded", extra=fields(code=error.code, error=error, fix=error.fix))
        else:
            self._attention.set()

    # The service.

    async def run(self) -> None:
        """Serve until `stop`; everything is taken back before this returns or raises.

        Raises:
            WgvsockError: The relay cannot start, or its interface was removed.
        """
        inherited = self._journal.open()
        try:
            async with AsyncExitStack() as stack:
                await self._start(stack, inherited)
                await first_of(self._attend(), self._tunnel.wait_ended(), self._stopped())
                self._enter(State.STOPPING)
                if self._keep_flows:
                    await self._nat.close(self._rules())
                    self._leaves_rules = True
        finally:
            await self._take_back()
            self._journal.close()

    async def _start(self, stack: AsyncExitStack, inherited: int) -> None:
        config = self._config
        _log.info("the relay starts", extra=fields(enclave=config.enclave.address, inherited=inherited))
        _warn_of_risks(config)
        seed = load_signing_seed(config, self._random)
        tun = open_tun(config.interface.name, packet_headroom=self._device.packet_headroom)
        stack.callback(tun.close)
        self._netlink = await stack.enter_async_context(open_netlink(self._journal.record))
        self._uplink = await find_uplink(self._netlink, config.nat.uplink)
        self._tunnel_config = make_tunnel_config(config, self._uplink, resolver.read())
        self._provisioner = Provisioner(seed, self._random, lambda: datetime.now(UTC), self._provisioning_deadlines())
        backend = await netfilter.choose_backend()
        self._nat = Nat(Netfilter(backend, self._journal.record))
        # From here on this machine forwards packets: only ours, and those only while the enclave is attested.
        self._forwards_others = await enable_forwarding(self._netlink, config, self._uplink)
        await self._nat.close(self._rules())
        await set_up_tunnel(self._netlink, config, self._tunnel_config.mtu)
        for error in await self._journal.undo_inherited():
            _log.error("%s", error)
        await self._start_tunnel(stack, tun)
        await self._serve(stack, Endpoint(self._control_address(), self._routes() | self._control_routes()))
        if config.health.listen is not None:
            await self._serve(stack, Endpoint(config.health.listen, self._routes()))

    @staticmethod
    async def _serve(stack: AsyncExitStack, endpoint: Endpoint) -> None:
        await endpoint.start()
        stack.callback(endpoint.close)

    async def _start_tunnel(self, stack: AsyncExitStack, tun: Tun) -> None:
        transport = StreamTransport()
        self._session = Session(self._device, wake=self._wake_tunnel, stream=transport.link_for, clock=self._clock)
        self._tunnel = Tunnel(self._device, tun, transport, clock=self._clock, on_event=self._session.on_event)
        await stack.enter_async_context(self._tunnel)

    def _wake_tunnel(self) -> None:
        self._tunnel.wake()

    async def _take_back(self) -> None:
        if self._launcher is not None and not self._keep_flows:
            try:
                await self._launcher.stop()
            except NitroCliError as failure:
                extra = fields(code=failure.code, error=failure, fix=failure.fix)
                _log.error("the enclave was not terminated", extra=extra)
        if self._leaves_rules:
            _log.info("the relay has stopped, and leaves its closed packet filter to the next one")
            return
        for error in await self._journal.undo_all():
            _log.error("%s", error)
        _log.info("the relay has stopped and taken everything back")

    # The attending task: attest, watch, attest again.

    async def _stopped(self) -> None:
        await self._stop.wait()

    async def _attend(self) -> None:
        while True:
            await self._adopt()
            try:
                await self._launch()
                await self._attest()
            except AttestationError as error:
                self._note(error, "rejected")
                await self._give_up("the enclave was refused")
                if self._launcher is not None and error.check.startswith(_FINAL_CHECKS):
                    raise
            except (ProvisioningError, TransportError, NitroCliError) as error:
                self._note(error, "failed")
                if self._session.peer is None or self._is_lost() or self._clock() >= self._trusted_until:
                    await self._give_up("attestation could not be carried out")
            else:
                self._backoff.reset()
                await self._watch()
                continue
            await wait_for_event(self._attention, self._backoff.next_delay())

    async def _launch(self) -> None:
        """An enclave that is ours to launch runs, after this."""
        if self._launcher is None:
            return
        if self._launcher.enclave is None:
            await self._launcher.start()
        elif not await self._launcher.is_running():
            _log.warning("the enclave has ended", extra=fields(enclave=self._launcher.enclave.enclave_id))
            await self._launcher.restart()

    def _target(self) -> RelayConfig:
        """The configuration, with what is known of the enclave only since it was launched."""
        if self._launcher is None or self._launcher.enclave is None:
            return self._config
        return self._config.launched(self._launcher.enclave)

    async def _attest(self) -> None:
        """One exchange, one handshake, and the way is open."""
        if self._session.peer is None:
            self._enter(State.PROVISIONING)
        self._demanded = False
        config, tunnel_config = self._target(), self._tunnel_config
        private_key = generate_private_key(self._random)
        provisioned = await self._provisioner.provision(config, tunnel_config, public_key(private_key))
        if self._session.peer is None:
            self._enter(State.HANDSHAKING)
        settings = PeerSettings(
            endpoint=config.enclave.address,
            allowed_ips=enclave_hosts(config),
            persistent_keepalive=tunnel_config.persistent_keepalive,
            profile=Profile.GSO if PROFILE_GSO in provisioned.capabilities else Profile.PLAIN,
        )
        self._session.install(provisioned.attested, provisioned.preshared_key, private_key, settings)
        seconds = await self._session.establish(settings, self._provisioner.deadlines.handshake)
        await self._nat.open(self._rules())
        self._trust(provisioned, seconds)

    def _trust(self, provisioned: EnclaveProvisioned, handshake_seconds: float) -> None:
        # A demand that came while the exchange was under way is not met by it: it may be about a new configuration.
        period = 0.0 if self._demanded else self._config.provisioning.reattest_every
        self._attest_by = self._clock() + period
        self._trusted_until = self._attest_by + self._config.provisioning.grace
        self._attempts["ok"] += 1
        if self._launcher is not None:
            self._launcher.proved()
        self._last_error = None
        attested = provisioned.attested
        self._attested = {
            "module_id": attested.module_id,
            "timestamp": attested.timestamp.isoformat(),
            "pcrs": {f"PCR{index}": value.hex() for index, value in sorted(attested.pcrs.items())},
            "public_key": key_text(attested.wireguard_public_key),
            "capabilities": list(provisioned.capabilities),
            "handshake_ms": round(handshake_seconds * 1000, 3),
        }
        _log.info(
            "the enclave is attested and the tunnel is up",
            extra=fields(module_id=attested.module_id, handshake_ms=handshake_seconds * 1000),
        )
        self._enter(State.READY)

    async def _watch(self) -> None:
        """Return when the enclave has to be attested again."""
        interrupted = False
        while self._clock() < self._attest_by:
            await wait_for_event(self._attention, self._watch_interval)
            await self._adopt()
            if self._is_lost():
                await self._give_up("the enclave is lost")
                return
            was_interrupted, interrupted = interrupted, self._session.lost_for() > 0
            if was_interrupted and not interrupted:
                await self._nat.forgive_interruption(self._rules())

    def _is_lost(self) -> bool:
        return self._session.lost_for() > self._config.provisioning.reattest_after_loss

    async def _give_up(self, why: str) -> None:
        """No peer, no way to the world, not ready."""
        self._session.drop(why)
        self._attested = None
        await self._nat.close(self._rules())
        self._enter(State.PROVISIONING)

    def _demand_attestation(self) -> None:
        now = self._clock()
        self._demanded = True
        self._attest_by = now
        self._trusted_until = min(self._trusted_until, now + self._config.provisioning.grace)
        self._attention.set()

    def _note(self, error: WgvsockError, outcome: str) -> None:
        self._attempts[outcome] += 1
        repeated = self._last_error is not None and str(self._last_error) == str(error)
        self._last_error = error
        level = logging.DEBUG if repeated else logging.WARNING  # one line a change, not one an attempt
        _log.log(level, "the enclave is not provisioned", extra=fields(code=error.code, error=error, fix=error.fix))

    def _enter(self, state: State) -> None:
        if state is not self._state:
            _log.info("state", extra=fields(old=self._state.value, new=state.value))
            self._state = state

    async def _adopt(self) -> None:
        """Put a reloaded configuration in force."""
        if self._adopting is None:
            return
        (new, tunnel_config), self._adopting = self._adopting, None
        old, old_tunnel_config = self._config, self._tunnel_config
        try:
            await self._put_in_force(new, tunnel_config)
        except WgvsockError as error:
            _log.error("the configuration was not reloaded", extra=fields(code=error.code, error=error, fix=error.fix))
            await self._put_in_force(old, old_tunnel_config)
            return
        self._attest_by = min(self._attest_by, self._clock() + new.provisioning.reattest_every)
        asks_enclave = tunnel_config != old_tunnel_config or new.attestation != old.attestation
        if asks_enclave:
            self._demand_attestation()
        _log.info("the configuration is reloaded", extra=fields(changed=new != old, attests_again=asks_enclave))

    async def _put_in_force(self, config: RelayConfig, tunnel_config: TunnelConfig) -> None:
        self._config, self._tunnel_config = config, tunnel_config
        self._provisioner.deadlines = self._provisioning_deadlines()
        await set_up_tunnel(self._netlink, config, tunnel_config.mtu)
        if self._nat.is_open:
            await self._nat.open(self._rules())

    # What the configuration comes to.

    def _rules(self) -> Ruleset:
        return make_ruleset(
            self._config, self._tunnel_config, uplink=self._uplink.name, forwards_others=self._forwards_others
        )

    def _provisioning_deadlines(self) -> Deadlines:
        if self._deadlines is not None:
            return self._deadlines
        settings = self._config.provisioning
        return replace(Deadlines(), exchange=settings.exchange_timeout, handshake=settings.handshake_timeout)

    def _control_address(self) -> UnixAddress:
        return UnixAddress(str(Path(self._config.runtime_directory) / f"{self._config.name}.sock"))

    # Status.

    def _routes(self) -> dict[tuple[str, str], Route]:
        return {
            ("GET", "/live"): live,
            ("GET", "/ready"): lambda: self.readiness().answer(),
            ("GET", "/status"): lambda: as_json(self.status()),
            ("GET", "/metrics"): lambda: Answer(metrics(self.status())),
        }

    def _control_routes(self) -> dict[tuple[str, str], Route]:
        return {
            ("POST", "/reattest"): lambda: self._accepted(self.reattest),
            ("POST", "/reload"): lambda: self._accepted(self.reload),
        }

    @staticmethod
    def _accepted(action: Callable[[], None]) -> Answer:
        action()
        return as_json({"schema": SCHEMA, "accepted": True}, HTTPStatus.ACCEPTED)

    def readiness(self) -> Readiness:
        """Whether packets may pass, and if not, why."""
        limit = self._device.timings.reject_after_time
        idle_is_fine = not self._config.interface.persistent_keepalive
        return Readiness(
            attested=self._attested is not None and self._clock() < self._trusted_until,
            handshake=self._session.is_established
            and not self._session.lost_for()
            and (idle_is_fine or self._session.handshake_age < limit),
            rules=self._nat.is_open,
        )

    def _launched_status(self) -> dict[str, Any] | None:
        if self._launcher is None or self._launcher.enclave is None:
            return None
        enclave = self._launcher.enclave
        return {"name": enclave.name, "enclave_id": enclave.enclave_id, "cid": enclave.cid, "debug": enclave.debug}

    def status(self) -> dict[str, Any]:
        """The snapshot for ``wgvsock status --json``."""
        now = self._clock()
        readiness = self.readiness()
        error = self._last_error
        rules = self._nat.rules
        return {
            "schema": SCHEMA,
            "role": "relay",
            "name": self._config.name,
            "pid": os.getpid(),
            "state": self._state.value,
            "ready": readiness.ready,
            "conditions": {
                "attested": readiness.attested,
                "handshake": readiness.handshake,
                "rules": readiness.rules,
            },
            "enclave": str(self._target().enclave.address),
            "launched": self._launched_status(),
            "attestation": self._attested,
            "root_is_aws": not self._config.attestation.has_foreign_root,
            "debug_allowed": self._config.attestation.allow_debug,
            "provisioning": {
                "attempts": dict(self._attempts),
                "next_in_seconds": round(max(0.0, self._attest_by - now), 1) if self._attested else 0.0,
                "error": None if error is None else {"code": error.code, "what": error.what, "why": error.why},
            },
            "wireguard": wireguard_status(self._device, self._config.interface.name, now),
            "nat": {
                "open": self._nat.is_open,
                "backend": self._nat.netfilter.backend,
                "uplink": self._uplink.name,
                "mtu": self._tunnel_config.mtu,
                "published": [
                    f"{port.protocol}:{port.port}->{port.destination}:{port.destination_port}"
                    for port in (rules.published if rules is not None and rules.is_open else ())
                ],
            },
            "counters": counters(self._tunnel.statistics()),
        }


def _warn_of_risks(config: RelayConfig) -> None:
    if config.attestation.has_foreign_root:
        _log.warning("attestation roots other than AWS's are accepted: this is no production configuration")
    if config.attestation.has_placeholder:
        _log.warning("a PCR set holds zeros: it matches no enclave, put the image's measurements in their place")
    if config.attestation.allow_debug:
        _log.warning("enclaves in debug mode are accepted: they are not measured and anybody can read them")
