"""The enclave's agent: answers the relay, maintains the tunnel, and runs the application once the link is up.

The provisioning state machine decides what to do, and `wgvsock.enclave.orders` does it. `wgvsock.enclave.application`
runs the application and reports on it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

from wgvsock.devices.base import SecureModule, TunDevice
from wgvsock.devices.nsm import NsmClient
from wgvsock.egress.gate import Gate
from wgvsock.enclave.application.keeper import Keeper
from wgvsock.enclave.application.reports import ReportServer
from wgvsock.enclave.application.ring import Ring
from wgvsock.enclave.assignments import Assignments
from wgvsock.enclave.clock import EnclaveClock
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.documents.endpoint import DocumentEndpoint
from wgvsock.enclave.documents.maker import DocumentMaker
from wgvsock.enclave.errors import ApplicationError
from wgvsock.enclave.identity import commit_to_key, make_key, seed_kernel
from wgvsock.enclave.network import EnclaveNetwork
from wgvsock.enclave.orders import Orders
from wgvsock.enclave.provisioner import ProvisioningServer
from wgvsock.enclave.status import AgentSnapshot, EgressSnapshot, enclave_status
from wgvsock.machine.base import EnclaveMachine
from wgvsock.provisioning import LISTEN_BACKLOG, Deadlines, EnclaveProvisioning, TunnelConfig
from wgvsock.runtime.journal import Journal
from wgvsock.runtime.tasks import first_of
from wgvsock.telemetry.endpoint import Answer, Endpoint, Route, as_json
from wgvsock.telemetry.logs import fields
from wgvsock.telemetry.status import counters, metrics, wireguard_status
from wgvsock.transports.sockets import listen_stream
from wgvsock.transports.stream import StreamTransport
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.uapi.window import shown
from wgvsock.virtio_net import HEADER_LENGTH
from wgvsock.wireguard import Device, Event, HandshakeCompleted, Timings

_LOOK_EVERY: Final = 0.05
"""Seconds between two looks whether the relay is still connected, while an agent that is stopping waits for it."""

_log = logging.getLogger(__name__)


class EnclaveSupervisor:
    """Runs one enclave's agent. Call `run` once, in the thread of its event loop.

    Args:
        config: The settings built into the image.
        machine: The machine that it runs on: the enclave.
        secure_module: The Nitro Security Module.
        timings: The WireGuard core's time limits.
        deadlines: Provisioning's time limits.
        seed: Seeds the kernel's random number generator from the module, or None to skip that.
    """

    def __init__(
        self,
        config: EnclaveConfig,
        machine: EnclaveMachine,
        secure_module: SecureModule,
        *,
        timings: Timings | None = None,
        deadlines: Deadlines | None = None,
        seed: Callable[[NsmClient], None] | None = seed_kernel,
    ) -> None:
        self._config = config
        self._machine = machine
        self._nsm = NsmClient(secure_module)
        self._seed = seed
        self._deadlines = deadlines or Deadlines()
        self._journal = Journal(config.runtime_directory, config.name, machine.performers())
        headroom = HEADER_LENGTH if "gso" in config.profiles else 0
        self._device = Device(
            random=machine.random,
            wall_clock=machine.wall_clock,
            timings=timings or Timings(),
            packet_headroom=headroom,
        )
        self._stop = asyncio.Event()
        self._serving = asyncio.Event()
        self._clock = EnclaveClock(machine, config.clock)
        self._ring = Ring(config.application.output_limit)
        self._keeper: Keeper | None = None
        # Made by `run`:
        self._reports: ReportServer
        self._documents: DocumentEndpoint
        self._orders: Orders
        self._gate: Gate | None = None
        self._tunnel: Tunnel
        self._provisioning: EnclaveProvisioning
        self._assignments: Assignments
        self._server: ProvisioningServer

    @property
    def is_serving(self) -> bool:
        """Whether relays can connect."""
        return self._serving.is_set()

    # For signal handlers.

    def stop(self) -> None:
        """End the application, then `run`."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.stop()

    def forward(self, number: int) -> None:
        """Forward a signal to the application."""
        self._send(number)

    def _send(self, number: int) -> bool:
        """Send the application a signal, and return whether it was running."""
        if self._keeper is None or not self._keeper.is_running:
            return False
        self._keeper.forward(number)
        return True

    # The service.

    async def run(self, command: Sequence[str] = ()) -> int:
        """Serve until `stop` is called or the application ends. Undo every change before returning or raising.

        Args:
            command: The application and its arguments, started once a relay has proved itself. May be empty.

        Returns:
            The application's exit status, or 0 if there is none or it ended on request.

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
            _log.info("the agent has stopped and undone all its changes")

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._config
        _log.info("the agent is starting", extra=fields(listen=config.listen, parent_cid=config.parent_cid))
        if config.pin_public_key is None:
            _log.warning(
                "there is no relay pin: the first client to connect can provision this enclave and carry its traffic",
                extra=fields(fix='set "pin_public_key" in the image\'s enclave.toml'),
            )
        for error in await self._journal.undo_inherited():
            _log.error("%s", error)
        tun = self._machine.open_tun(config.interface, packet_headroom=self._device.packet_headroom)
        stack.callback(tun.close)
        await self._make_identity()
        kernel = await stack.enter_async_context(self._machine.open_netlink(self._journal.record))
        self._gate = self._make_gate(tun)
        network = EnclaveNetwork(
            kernel, self._journal, config.interface, config.queue_length, config.resolv_conf, self._gate
        )
        await network.bring_up_loopback()
        transport = StreamTransport(listen=[config.listen], allowed_cids=config.allowed_cids())
        clock = self._machine.monotonic
        self._tunnel = Tunnel(self._device, tun, transport, clock=clock, on_event=self._core_reports, gate=self._gate)
        self._assignments = Assignments(
            self._device,
            network,
            link_for=transport.link_for,
            active=lambda: self._provisioning.active,
            clock=clock,
            wake=self._tunnel.wake,
        )
        stack.callback(self._assignments.close)
        self._provisioning = EnclaveProvisioning(
            random=self._machine.random,
            capabilities=config.capabilities(),
            relay_pin=config.pin(),
            last_authenticated=self._assignments.last_authenticated,
            relay_connected=self._assignments.relay_connected,
            deadlines=self._deadlines,
        )
        self._orders = Orders(
            self._machine,
            self._device,
            self._nsm,
            self._assignments,
            self._clock,
            module_timeout=self._deadlines.secure_module,
            on_configured=self._configured,
        )
        await stack.enter_async_context(self._tunnel)
        port = getattr(config.listen, "port", 0)
        place = self._machine.listen_for_wg(config.interface)
        await stack.enter_async_context(shown(self._device, place, port, clock=clock))
        self._reports = ReportServer(self._machine, config.interface, config.application, self._ring, self._send)
        stack.callback(self._reports.close)
        endpoint_settings = config.attestation_endpoint
        maker = DocumentMaker(
            self._machine,
            self._nsm,
            timeout=self._deadlines.secure_module,
            tls_certificate=endpoint_settings.tls_certificate,
        )
        user = config.application.user
        self._documents = DocumentEndpoint(self._machine, config.interface, endpoint_settings, maker, user)
        stack.callback(self._documents.close)
        await self._documents.start()
        listener = listen_stream(config.provisioning(), backlog=LISTEN_BACKLOG)
        self._server = ProvisioningServer(
            listener,
            self._provisioning,
            self._orders.carry_out,
            clock=clock,
            allowed_cids=config.allowed_cids(),
        )
        endpoint = Endpoint(config.control_socket(), self._routes())
        await endpoint.start()
        stack.callback(endpoint.close)
        self._serving.set()

    def _make_gate(self, tun: TunDevice) -> Gate | None:
        policy = self._config.egress_policy()
        if policy is None:
            return None
        rules = len(policy.allow) + len(policy.deny)
        default = "allow" if policy.allows_by_default else "deny"
        _log.info("the image's own egress policy is in force", extra=fields(default=default, rules=rules))
        return Gate(policy, tun.write, tun.packet_headroom)

    async def _make_identity(self) -> None:
        self._clock.follow_hardware()
        machine, deadline = self._machine, self._deadlines.secure_module
        if self._seed is not None:
            seed = self._seed
            await machine.ask_module(lambda: seed(self._nsm), timeout=deadline)
        key = make_key(machine.random)
        self._device.set_private_key(key, machine.monotonic())
        if self._config.key_pcr >= 0:
            index = self._config.key_pcr
            await machine.ask_module(lambda: commit_to_key(self._nsm, key, index), timeout=deadline)

    async def _supervise(self, command: Sequence[str]) -> int:
        """Run the application to its end, or wait for `stop` if there is none."""
        # Made early: the relay has to read that there is a probe, and therefore to wait, before the application starts.
        keeper = self._make_keeper(command) if command else None
        await first_of(self._link_is_up(), self._stopped())
        if self._stop.is_set() or keeper is None:
            await self._stopped()
            return 0
        self._keeper = keeper
        try:
            status = await keeper.run()
        except ApplicationError:
            await self._deliver_reports()
            raise
        await self._deliver_reports()
        return status

    def _make_keeper(self, command: Sequence[str]) -> Keeper:
        return Keeper(
            command,
            self._config.application,
            stop_timeout=self._config.stop_timeout,
            ring=self._ring,
            clock=self._machine.monotonic,
            wall_clock=self._machine.wall_clock,
        )

    async def _deliver_reports(self) -> None:
        """Let the relay read the last report before the enclave is gone.

        The relay may not have asked for reports yet, or may be about to reconnect after a lost stream. An agent that
        is told to stop while no relay is connected does not wait.
        """
        comes_back = self._reports.was_read and not self._stop.is_set()
        if self._config.application.report_port and (comes_back or self._assignments.relay_connected()):
            await first_of(self._reports.delivered(self._config.stop_timeout), self._nobody_reads())

    async def _nobody_reads(self) -> None:
        """Wait until the agent is told to stop and no relay is connected: both are often stopped at once."""
        await self._stop.wait()
        while self._assignments.relay_connected():  # noqa: ASYNC110 (a link that ends has no event for this)
            await asyncio.sleep(_LOOK_EVERY)

    def _configured(self, configs: Sequence[TunnelConfig]) -> None:
        addresses = [address.ip for config in configs for address in config.addresses]
        self._reports.listen(addresses, [gateway for config in configs for gateway in config.gateways])
        self._documents.listen(addresses)

    async def _link_is_up(self) -> int:
        await self._orders.link_up.wait()
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

    # Events of the WireGuard core.

    def _core_reports(self, event: Event) -> None:
        match event:
            case HandshakeCompleted(peer) if self._assignments.is_proved_by(event):
                self._provisioning.activate(peer.public_key, self._machine.monotonic())
                self._server.settle()
            case _:
                pass

    # Status.

    def _routes(self) -> dict[tuple[str, str], Route]:
        return {
            ("GET", "/status"): lambda: as_json(enclave_status(self.snapshot())),
            ("GET", "/metrics"): lambda: Answer(metrics(enclave_status(self.snapshot()))),
        }

    def snapshot(self) -> AgentSnapshot:
        """The agent's current state. Valid once it is serving."""
        active = self._provisioning.active
        return AgentSnapshot(
            name=self._config.name,
            pid=os.getpid(),
            state=self._provisioning.state,
            pinned=self._config.pin_public_key is not None,
            attempts=dict(self._orders.attempts),
            wireguard=wireguard_status(self._device, self._config.interface, self._machine.monotonic()),
            counters=counters(self._tunnel.statistics()),
            network=None if active is None else active.config,
            clock_offset=self._clock.offset,
            application=None if self._keeper is None else self._ring.state,
            egress=self._egress(),
        )

    def _egress(self) -> EgressSnapshot | None:
        policy = self._config.egress_policy()
        if self._gate is None or policy is None:
            return None
        return EgressSnapshot(policy, self._gate.snapshot(), self._machine.monotonic())
