"""The enclave's agent: answers the relay, keeps the tunnel, and runs the application once the link is up.

The provisioning machine says what to do, one event after the other; this module does it to kernel, WireGuard core and
security module. A new assignment never displaces what works before the relay has proved itself under it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from wgvsock.addresses import UnixAddress
from wgvsock.devices.base import SecureModule
from wgvsock.devices.nsm import NsmClient, call_in_thread
from wgvsock.devices.tun import open_tun
from wgvsock.enclave.application import Application
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.identity import commit_to_key, make_key, seed_kernel
from wgvsock.enclave.network import EnclaveNetwork
from wgvsock.enclave.provisioner import ProvisioningServer
from wgvsock.errors import WgvsockError
from wgvsock.provisioning import (
    PROFILE_GSO,
    Assignment,
    AttestationNeeded,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    Deadlines,
    EnclaveEvent,
    EnclaveProvisioning,
    ExchangeEnded,
)
from wgvsock.system import netlink, resolver
from wgvsock.system.journal import Journal
from wgvsock.system.netlink import open_netlink
from wgvsock.system.tasks import first_of
from wgvsock.telemetry.endpoint import Answer, Endpoint, Route, as_json
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.status import SCHEMA, counters, metrics, wireguard_status
from wgvsock.transports.stream import StreamTransport
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.virtio_net import HEADER_LENGTH
from wgvsock.wireguard import Device, Event, HandshakeCompleted, Profile, Timings

RETIREMENT: Final = 5.0
"""Seconds for which packets that a replaced relay sent before the change are still accepted."""

_ENDED_BY_SIGTERM: Final = 128 + 15

_log = logging.getLogger(__name__)


class EnclaveSupervisor:
    """Runs one enclave's agent; `run` once, from its own event loop's thread.

    Args:
        config: What is built into the image.
        secure_module: The Nitro Security Module.
        timings: The WireGuard core's limits.
        deadlines: Of provisioning.
        random: Entropy for every key, nonce and ephemeral.
        clock: Monotonic seconds, the event loop's.
        seed: Gives the kernel's generator entropy of the module; None: does not.
    """

    def __init__(
        self,
        config: EnclaveConfig,
        secure_module: SecureModule,
        *,
        timings: Timings | None = None,
        deadlines: Deadlines | None = None,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        seed: Callable[[NsmClient], None] | None = seed_kernel,
    ) -> None:
        self._config = config
        self._nsm = NsmClient(secure_module)
        self._random = random
        self._seed = seed
        self._clock = clock
        self._deadlines = deadlines or Deadlines()
        self._journal = Journal(config.runtime_directory, config.name, netlink.performers() | resolver.performers())
        headroom = HEADER_LENGTH if "gso" in config.profiles else 0
        self._device = Device(
            random=random, wall_clock=time.time_ns, timings=timings or Timings(), packet_headroom=headroom
        )
        self._provisioning = EnclaveProvisioning(
            random=random,
            capabilities=config.capabilities(),
            relay_pin=config.pin(),
            last_authenticated=self._last_authenticated,
            deadlines=self._deadlines,
        )
        self._stop = asyncio.Event()
        self._link_up = asyncio.Event()
        self._applied_at = 0.0
        self._attempts = {"ok": 0, "failed": 0}
        self._retirements: set[asyncio.TimerHandle] = set()
        # Made by `run`:
        self._application: Application | None = None
        self._tunnel: Tunnel
        self._network: EnclaveNetwork
        self._server: ProvisioningServer

    # For signal handlers.

    def stop(self) -> None:
        """End the application, then `run`."""
        self._stop.set()

    def forward(self, number: int) -> None:
        """Hand a signal on to the application."""
        if self._application is not None:
            self._application.forward(number)

    # The service.

    async def run(self, command: Sequence[str] = ()) -> int:
        """Serve until `stop`, or until the application ends; everything is taken back before this returns or raises.

        Args:
            command: The application, started when the relay has proved itself for the first time; empty: none.

        Returns:
            The application's exit status; 0 without one, or when it ended as it was asked to.

        Raises:
            WgvsockError: The agent cannot start, or its interface was removed.
        """
        self._journal.open()
        try:
            async with AsyncExitStack() as stack:
                await self._start(stack)
                return await first_of(self._supervise(command), self._serve_provisioning(), self._tunnel_ended())
        finally:
            for error in await self._journal.undo_all():
                _log.error("%s", error)
            self._journal.close()
            _log.info("the agent has stopped and taken everything back")

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._config
        _log.info("the agent starts", extra=fields(listen=config.listen, parent_cid=config.parent_cid))
        for error in await self._journal.undo_inherited():
            _log.error("%s", error)
        tun = open_tun(config.interface, packet_headroom=self._device.packet_headroom)
        stack.callback(tun.close)
        await self._make_identity()
        kernel = await stack.enter_async_context(open_netlink(self._journal.record))
        self._network = EnclaveNetwork(kernel, self._journal, config.interface, config.queue_length, config.resolv_conf)
        await self._network.bring_up_loopback()
        stack.callback(self._cancel_retirements)
        transport = StreamTransport(listen=[config.listen], allowed_cids=config.allowed_cids())
        self._tunnel = Tunnel(self._device, tun, transport, clock=self._clock, on_event=self._core_reports)
        await stack.enter_async_context(self._tunnel)
        self._server = ProvisioningServer(
            config.provisioning(), self._provisioning, self._work, clock=self._clock, allowed_cids=config.allowed_cids()
        )
        endpoint = Endpoint(UnixAddress(str(Path(config.runtime_directory) / f"{config.name}.sock")), self._routes())
        await endpoint.start()
        stack.callback(endpoint.close)

    async def _make_identity(self) -> None:
        deadline = self._deadlines.secure_module
        if self._seed is not None:
            seed = self._seed
            await call_in_thread(lambda: seed(self._nsm), timeout=deadline)
        key = make_key(self._random)
        self._device.set_private_key(key, self._clock())
        if self._config.key_pcr >= 0:
            await call_in_thread(lambda: commit_to_key(self._nsm, key, self._config.key_pcr), timeout=deadline)

    async def _supervise(self, command: Sequence[str]) -> int:
        """The application's life, or only ours where there is none."""
        await first_of(self._link_is_up(), self._stopped())
        if self._stop.is_set() or not command:
            await self._stopped()
            return 0
        self._application = application = Application(command)
        application.start()
        try:
            await first_of(application.wait(), self._stopped())
        finally:
            await application.stop(self._config.stop_timeout)
        status = await application.wait()
        return 0 if self._stop.is_set() and status == _ENDED_BY_SIGTERM else status

    async def _link_is_up(self) -> int:
        await self._link_up.wait()
        return 0

    async def _stopped(self) -> int:
        await self._stop.wait()
        return 0

    async def _serve_provisioning(self) -> int:
        await self._server.serve()
        return 0

    async def _tunnel_ended(self) -> int:
        await self._tunnel.wait_ended()
        return 0

    # What the provisioning machine wants done, one event at a time.

    async def _work(self, event: EnclaveEvent) -> None:
        match event:
            case ConfigurationOffered():
                await self._apply(event)
            case AttestationNeeded():
                await self._attest(event)
            case ConfigurationActivated(assignment, replaced):
                await self._activate(assignment, replaced)
            case ConfigurationRolledBack(assignment, restores):
                await self._roll_back(assignment, restores)
            case ExchangeEnded(_, None):
                self._attempts["ok"] += 1
                _log.info("the relay accepted this enclave")
            case ExchangeEnded(_, error):
                self._attempts["failed"] += 1
                _log.warning("a provisioning exchange failed", extra=fields(error=error))

    async def _apply(self, event: ConfigurationOffered) -> None:
        assignment, replaces = event.assignment, event.replaces
        try:
            if replaces is None:
                await self._network.apply(assignment.config)
            else:
                await self._network.add_addresses(assignment.config, replaces.config)
            self._install_peer(assignment, replaces)
        except WgvsockError as error:
            _log.error("the configuration cannot be applied", extra=fields(code=error.code, error=error, fix=error.fix))
            event.exchange.configuration_failed()
            return
        self._applied_at = self._clock()
        public_key = self._device.public_key
        assert public_key is not None  # noqa: S101 - set before the provisioning port is open
        event.exchange.configuration_applied(public_key, self._applied_at)

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
        self._tunnel.wake()

    async def _attest(self, event: AttestationNeeded) -> None:
        try:
            document = await call_in_thread(
                lambda: self._nsm.attest(nonce=event.nonce, public_key=event.public_key, user_data=event.user_data),
                timeout=self._deadlines.secure_module,
            )
        except WgvsockError as error:
            _log.error("no attestation document", extra=fields(code=error.code, error=error, fix=error.fix))
            event.exchange.attestation_failed()
        else:
            event.exchange.attestation_ready(document, self._clock())

    async def _activate(self, assignment: Assignment, replaced: Assignment | None) -> None:
        """The relay has proved itself: what the assignment replaced may go."""
        if replaced is not None:
            await self._try(self._network.apply(assignment.config))
            peer = self._device.peers.get(assignment.relay_public_key)
            if peer is not None:
                peer.set_allowed_ips(assignment.config.allowed_ips)
                peer.set_persistent_keepalive(assignment.config.persistent_keepalive, self._clock())
                peer.set_profile(_profile(assignment))
            if replaced.relay_public_key != assignment.relay_public_key:
                self._retire(replaced.relay_public_key)
            self._tunnel.wake()
        _log.info("the link is up", extra=fields(replaced=replaced is not None))
        self._link_up.set()

    async def _roll_back(self, assignment: Assignment, restores: Assignment | None) -> None:
        if restores is None or restores.relay_public_key != assignment.relay_public_key:
            self._device.remove_peer(assignment.relay_public_key)
        else:
            self._device.peers[assignment.relay_public_key].set_preshared_key(restores.preshared_key)
        self._tunnel.wake()
        await self._try(self._network.apply(restores.config) if restores else self._network.clear())
        _log.warning("the relay did not prove itself: its configuration is taken back")

    async def _try(self, change: Awaitable[None]) -> None:
        try:
            await change
        except WgvsockError as error:
            _log.error("a part of the network is not set up", extra=fields(code=error.code, error=error, fix=error.fix))

    def _retire(self, key: bytes) -> None:
        def retire() -> None:
            self._retirements.discard(handle)
            if self._provisioning.active is None or self._provisioning.active.relay_public_key != key:
                self._device.remove_peer(key)
                self._tunnel.wake()

        handle = asyncio.get_running_loop().call_later(RETIREMENT, retire)
        self._retirements.add(handle)

    def _cancel_retirements(self) -> None:
        for handle in self._retirements:
            handle.cancel()

    # What the WireGuard core tells.

    def _core_reports(self, event: Event) -> None:
        # Only a handshake begun under the pending assignment proves its preshared key.
        match event:
            case HandshakeCompleted(peer, _, duration) if self._clock() - duration >= self._applied_at:
                self._provisioning.activate(peer.public_key, self._clock())
                self._server.settle()
            case _:
                pass

    def _last_authenticated(self) -> float:
        active = self._provisioning.active
        peer = None if active is None else self._device.peers.get(active.relay_public_key)
        return float("-inf") if peer is None else peer.last_authenticated

    # Status.

    def _routes(self) -> dict[tuple[str, str], Route]:
        return {
            ("GET", "/status"): lambda: as_json(self.status()),
            ("GET", "/metrics"): lambda: Answer(metrics(self.status())),
        }

    def status(self) -> dict[str, Any]:
        """The snapshot for ``wgvsock status --json``."""
        active = self._provisioning.active
        return {
            "schema": SCHEMA,
            "role": "enclave",
            "name": self._config.name,
            "pid": os.getpid(),
            "state": self._provisioning.state.name.lower(),
            "ready": active is not None,
            "provisioning": {"attempts": dict(self._attempts)},
            "pinned": self._config.pin_public_key is not None,
            "wireguard": wireguard_status(self._device, self._config.interface, self._clock()),
            "network": None
            if active is None
            else {
                "addresses": [str(address) for address in active.config.addresses],
                "routes": [str(network) for network in active.config.allowed_ips],
                "mtu": active.config.mtu,
                "dns": [str(server) for server in active.config.nameservers],
            },
            "application": None if self._application is None else {"running": self._application.is_running},
            "counters": counters(self._tunnel.statistics()),
        }


def _profile(assignment: Assignment) -> Profile:
    return Profile.GSO if PROFILE_GSO in assignment.config.capabilities else Profile.PLAIN
