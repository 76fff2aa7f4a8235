"""One enclave's room: its interface, tunnel, session and uplink, which are set up and reverted together.

Every change to the machine is recorded in the enclave's scope of the journal, so that the next start reverts what a
crash left.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

from wgvsock.addresses import IpAddress
from wgvsock.devices.base import TunDevice
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import Deadlines, TunnelConfig
from wgvsock.relay.enclaves.application import ApplicationRecord
from wgvsock.relay.enclaves.interface import make_tunnel_config, path_ends
from wgvsock.relay.enclaves.launcher import Launcher
from wgvsock.relay.enclaves.names import NameService
from wgvsock.relay.enclaves.ping import Ping, ping
from wgvsock.relay.enclaves.provisioner import Provisioner
from wgvsock.relay.enclaves.reports import ReportAddress, ReportReader
from wgvsock.relay.enclaves.session import Session
from wgvsock.relay.enclaves.signing import load_signing_seed
from wgvsock.relay.judgements import Judgements
from wgvsock.relay.snapshots import Readiness
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.uplink.choice import choose
from wgvsock.relay.uplink.kernel import KernelUplink
from wgvsock.relay.uplink.reach import Reach
from wgvsock.relay.uplink.userspace import UserspaceUplink
from wgvsock.runtime.journal import Scope
from wgvsock.system.nitro_cli import NitroCliError
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.transports.link import StreamLink
from wgvsock.transports.stream import StreamTransport
from wgvsock.tunnel.path import Path
from wgvsock.tunnel.probe import PathProbe
from wgvsock.tunnel.tunnel import Tunnel
from wgvsock.uapi.window import shown
from wgvsock.virtio_net import HEADER_LENGTH
from wgvsock.wireguard import Device, Timings

_log = logging.getLogger(__name__)


class Room:
    """The resources that serve one enclave. Open it once and close it once.

    Args:
        spec: The enclave's specification.
        machine: The machine that the relay runs on.
        journal: Records changes to the machine.
        judgements: Records the verdict on each document.
        incarnation: When the relay's process started, as Unix time in milliseconds.
        launcher: Launches the enclave; None if the relay attaches to a running one.
        timings: The limits of the WireGuard core.
        deadlines: The time limits of provisioning; by default those of the configuration.
        show: Called with each line of the application's output.
    """

    def __init__(
        self,
        spec: EnclaveSpec,
        machine: RelayMachine,
        journal: Scope,
        judgements: Judgements,
        *,
        incarnation: int,
        launcher: Launcher | None = None,
        timings: Timings | None = None,
        deadlines: Deadlines | None = None,
        show: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self.machine = machine
        self.launcher = launcher
        self.judgements = judgements
        self.is_open = False
        self._has_ipv6 = True
        self.device = Device(
            random=machine.random,
            wall_clock=machine.wall_clock,
            timings=timings or Timings(),
            packet_headroom=HEADER_LENGTH if "gso" in spec.interface.profiles else 0,
        )
        self.application = ApplicationRecord(
            spec.name, lambda line: show(line) if self.spec.application.output else None
        )
        self.reports = ReportReader(machine, self.application, spec.name, self._connect)
        self.session: Session  # this and the following are set by `open`
        self.tunnel: Tunnel
        self.path: Path
        self.tunnel_config: TunnelConfig
        self.provisioner: Provisioner
        self.uplink: KernelUplink | UserspaceUplink
        self.reach: Reach
        self.names: NameService
        self._way_is_open: Callable[[], bool]
        self._stream: Callable[[object], StreamLink | None]
        self._journal = journal
        self._incarnation = incarnation
        self._fixed_deadlines = deadlines
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        """Set up the interface and the closed packet filter.

        Raises:
            WgvsockError: This machine does not permit that, or the configuration is wrong.
        """
        spec, machine = self.spec, self.machine
        _log.info("setting up the enclave", extra=self.fields(address=spec.enclave.address))
        _warn_of_risks(spec)
        seed = load_signing_seed(spec, machine.random)
        netlink = await self._stack.enter_async_context(machine.open_netlink(self._journal.record))
        way = choose(spec, machine, netlink, self._journal, self.device.packet_headroom)
        self._stack.callback(way.tun.close)
        self.uplink, self.reach, self._way_is_open = way.uplink, way.reach, way.is_open
        self._has_ipv6 = way.has_ipv6
        spec = self.spec = self._here(spec)
        await self.uplink.find(spec)
        self.tunnel_config = self.settings_for(spec)
        self.provisioner = Provisioner(
            seed, machine.random, lambda: datetime.now(UTC), self._incarnation, self._deadlines()
        )
        self.provisioner.profile = way.profile
        await self.uplink.prepare(spec, self.tunnel_config)
        self.names = NameService(machine, self.uplink.egress, way.dns_sockets)
        self._stack.callback(self.names.close)
        self.names.follow(spec, self.tunnel_config.gateways)
        await self._start_tunnel(way.tun)
        way.joined(self.tunnel.send)
        self.is_open = True

    async def close(self, *, terminate: bool, leave_rules: bool) -> None:
        """Revert all changes, however far `open` got.

        Args:
            terminate: Whether to terminate the enclave if the relay launched it.
            leave_rules: Whether to leave the closed packet filter in place for the next relay of this name.
        """
        await self._stack.aclose()
        if self.launcher is not None and terminate:
            try:
                await self.launcher.stop()
            except NitroCliError as failure:
                self.complain("the enclave was not terminated", failure)
        if leave_rules:
            _log.info("the closed packet filter is left to the next relay", extra=self.fields())
            return
        if hasattr(self, "uplink"):
            await self.uplink.leave_to_others()
        for error in await self._journal.undo_all():
            _log.error("%s", error)

    def settings_for(self, spec: EnclaveSpec) -> TunnelConfig:
        """The settings for the enclave under a configuration.

        Raises:
            ConfigurationError: The enclave would refuse the settings.
            ResolverError: The relay's resolv.conf cannot be read.
        """
        return make_tunnel_config(self._here(spec), self.uplink.uplink, self.machine.resolver())

    def _here(self, spec: EnclaveSpec) -> EnclaveSpec:
        """The specification for this machine: without the pool's IPv6 addresses if IPv6 is off.

        Docker turns IPv6 off in a container whose network has none. Addresses from the configuration stay, and lead to
        an error that says why they cannot be used.
        """
        return spec if self._has_ipv6 else spec.without_ipv6()

    async def put_in_force(self, spec: EnclaveSpec, tunnel_config: TunnelConfig) -> None:
        """Apply another configuration. The uplink stays open or closed as it is.

        Raises:
            WgvsockError: The configuration cannot be applied.
        """
        spec = self._here(spec)
        self.spec, self.tunnel_config = spec, tunnel_config
        self.provisioner.deadlines = self._deadlines()
        await self.uplink.adopt(spec, tunnel_config)
        self.names.follow(spec, tunnel_config.gateways)

    def follow_machine(self, spec: EnclaveSpec) -> TunnelConfig:
        """Adapt to a change of this machine's uplink or resolv.conf, including the name servers.

        Args:
            spec: What is or will soon be in force.

        Returns:
            The settings for the enclave under that specification from now on.

        Raises:
            WgvsockError: The change cannot be followed.
        """
        self.names.follow(self.spec, self.tunnel_config.gateways)
        return self.settings_for(spec)

    def follow(self, module_id: str) -> None:
        """Start to probe the path to the enclave's kernel and to read its application's reports."""
        if ends := path_ends(self.spec):
            self.path.begin(*ends, module_id)
            address = ReportAddress(self.spec.interface.name, ends[1], self.spec.application.report_port)
            self.reports.begin(address, module_id)

    def drop_peer(self, why: str) -> None:
        """Remove the peer (see `Session.drop`), and stop probing the path and reading reports."""
        self.session.drop(why)
        self.path.end()
        self.reports.end()

    def readiness(self, *, attested: bool) -> Readiness:
        """Whether packets may pass, and if not, why.

        Args:
            attested: Whether the enclave passed every check and is still trusted.
        """
        if not self.is_open:
            return Readiness(attested=False, handshake=False, rules=False)
        limit = self.device.timings.reject_after_time
        idle_is_fine = not self.spec.interface.persistent_keepalive
        return Readiness(
            attested=attested,
            handshake=self.session.is_established
            and not self.session.lost_for()
            and (idle_is_fine or self.session.handshake_age < limit),
            rules=self._way_is_open(),
            uplink=self.uplink.problem is None,
            path=self.path.snapshot().alive,
            application=self.application.ready() if attested else None,
        )

    async def ping(self) -> Ping:
        """Test every layer of the tunnel once."""
        peer = self.session.peer
        stream = None if peer is None else self._stream(peer.endpoint)
        return await ping(self.session, stream, self.path, self.machine.monotonic)

    def target(self) -> EnclaveSpec:
        """The specification, completed with what the launch has determined."""
        if self.launcher is None or self.launcher.enclave is None:
            return self.spec
        return self.spec.launched(self.launcher.enclave)

    def fields(self, **values: object) -> dict[str, dict[str, object]]:
        """The fields of a log line about this enclave."""
        return fields(enclave=self.spec.name, **values)

    def complain(self, what: str, error: WgvsockError) -> None:
        """Log an error that does not end the service, with its code and its fix."""
        _log.error(what, extra=error_fields(error, enclave=self.spec.name))

    async def _start_tunnel(self, tun: TunDevice) -> None:
        transport, clock = StreamTransport(), self.machine.monotonic
        self.session = Session(self.device, wake=self._wake_tunnel, stream=transport.link_for, clock=clock)
        self.tunnel = Tunnel(self.device, tun, transport, clock=clock, on_event=self.session.on_event)
        self.path = Path(PathProbe(self.machine.random, self.device.packet_headroom), self.tunnel, clock)
        self._stream = transport.link_for
        await self._stack.enter_async_context(self.tunnel)
        place = self.machine.listen_for_wg(self.spec.interface.name)
        await self._stack.enter_async_context(shown(self.device, place, clock=clock))

    async def _connect(self, interface: str, address: IpAddress, port: int, *, seconds: float) -> socket.socket:
        return await self.reach.connect(interface, address, port, seconds=seconds)

    def _wake_tunnel(self) -> None:
        self.tunnel.wake()

    def _deadlines(self) -> Deadlines:
        if self._fixed_deadlines is not None:
            return self._fixed_deadlines
        settings = self.spec.provisioning
        return replace(Deadlines(), exchange=settings.exchange_timeout, handshake=settings.handshake_timeout)


def _warn_of_risks(spec: EnclaveSpec) -> None:
    if spec.attestation.has_foreign_root:
        _log.warning("attestation roots other than AWS's are accepted: do not use this in production")
    if spec.attestation.has_placeholder:
        _log.warning("a PCR set contains zeros and matches no enclave: replace them with the image's measurements")
    if spec.attestation.allow_debug:
        _log.warning("enclaves in debug mode are accepted: their PCRs are zero, and the parent can read their console")
