"""The relay's process: its journal, its endpoints, and the fleet of enclaves that it serves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus

from wgvsock.addresses import StreamAddress
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.provisioning import Deadlines
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.enclaves.attendant import Attendant
from wgvsock.relay.enclaves.capture import Captures
from wgvsock.relay.enclaves.launcher import Launcher
from wgvsock.relay.enclaves.room import Room
from wgvsock.relay.errors import ReloadError, ReplacementError
from wgvsock.relay.fleet import Fleet
from wgvsock.relay.inquiries import LOGS_PATIENCE, Inquiries
from wgvsock.relay.judgements import Judgements
from wgvsock.relay.links import numbered
from wgvsock.relay.orders import Order, Orders, wait_for
from wgvsock.relay.snapshots import RelaySnapshot, State
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.relay.status import (
    live_answer,
    order_answer,
    ready_answer,
    relay_status,
    replace_refusal,
)
from wgvsock.runtime.journal import Journal
from wgvsock.system.nitro_cli import NitroCli, NitroCliError
from wgvsock.system.routing_rule import ROUTING_RULE
from wgvsock.telemetry.endpoint import Answer, Endpoint, Inquiry, Route, Routes, Takeover, as_json
from wgvsock.telemetry.logs import error_fields, fields
from wgvsock.telemetry.schema import SCHEMA
from wgvsock.telemetry.status import metrics
from wgvsock.text import meant
from wgvsock.wireguard import Timings

_log = logging.getLogger(__name__)

RouteTable = dict[tuple[str, str], Route | Inquiry | Takeover]

MakeLauncher = Callable[[EnclaveSpec], Launcher | None]


def make_launcher(spec: EnclaveSpec) -> Launcher | None:
    """A launcher that uses nitro-cli, or None if the relay attaches to a running enclave."""
    return None if spec.launch is None else Launcher(spec, NitroCli(spec.launch.nitro_cli))


class RelayService:
    """Runs one relay. Call `run` once, in the thread of its event loop.

    Args:
        config: The relay's configuration.
        machine: The machine that the relay runs on.
        reload_config: Reads the configuration again, for `reload`.
        launchers: Creates the launcher of an enclave.
        timings: The limits of the WireGuard core.
        deadlines: The time limits of provisioning; by default those of the configuration.
        show: Writes a line of an application's output, or of the audit, to standard output.

    Attributes:
        config: The configuration in force.
        fleet: The enclaves.
        incarnation: When this process started, as Unix time in milliseconds. A later relay supersedes an earlier one.
    """

    def __init__(
        self,
        config: RelayConfig,
        machine: RelayMachine,
        *,
        reload_config: Callable[[], RelayConfig] | None = None,
        launchers: MakeLauncher = make_launcher,
        timings: Timings | None = None,
        deadlines: Deadlines | None = None,
        show: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.fleet = Fleet(self._attendant)
        self._machine = machine
        self._reload_config = reload_config
        self._launchers = launchers
        self._timings = timings
        self._deadlines = deadlines
        self._show = show
        self.incarnation = self._machine.wall_clock() // 1_000_000
        self._journal = Journal(config.runtime_directory, config.name, self._machine.performers())
        self._state = State.STARTING
        self._judgements = Judgements(
            config.runtime_directory, config.name, config.audit, wall_clock=machine.wall_clock, show=show
        )
        self._orders = Orders()
        self._inquiries = Inquiries(self.fleet, machine, self.snapshot)
        self._captures = Captures(self._inquiries.rooms, machine.wall_clock)
        self._keep_flows: bool | None = None  # None: not asked to stop
        self._reload_asked = False  # while the relay was still starting

    def stop(self, *, keep_flows: bool = False) -> None:
        """End `run`. See `wgvsock.relay.enclaves.attendant.Attendant.stop`."""
        self._keep_flows = keep_flows
        self.fleet.stop(keep_flows=keep_flows)

    def reattest(self) -> Order:
        """Attest every enclave again now."""
        return self._orders.add("reattest", self._now(), self.fleet.reattest())

    def reload(self) -> Order | None:
        """Read the configuration again and apply the differences. On an error, nothing changes.

        Returns:
            The order, or None if the relay is still starting and will reload after that, or if it cannot reload.
        """
        if self._reload_config is None:
            return None
        if self._state is State.STARTING:
            self._reload_asked = True
            return None
        try:
            new = self._reload_config()
            if key := self.config.restart_needed_for(new):
                raise ReloadError(key)
            plan = self.fleet.plan(new)
            outcomes = self.fleet.carry_out(plan)
        except WgvsockError as error:
            _log.error("the configuration was not reloaded", extra=error_fields(error))
            return self._orders.add("reload", self._now(), error=error)
        self.config = new
        replacing = tuple(spec.name for spec in plan.replace)
        return self._orders.add("reload", self._now(), outcomes, replacing=replacing)

    def replace(self, name: str, image: str) -> None:
        """Start to replace an enclave with one from another image.

        Args:
            name: The enclave's name.
            image: Path of the image.

        Raises:
            ReplacementError: There is no such enclave, this relay did not launch it, or it is already being replaced.
        """
        member = self.fleet.members.get(name)
        if member is None:
            served = ", ".join(self.fleet.members)
            raise ReplacementError(
                f'there is no enclave "{name}"',
                why=f"this relay serves {served}",
                fix=meant(name, self.fleet.members),
            )
        spec = member.attendant.spec
        if spec.launch is None:
            raise ReplacementError(
                f'cannot replace the enclave "{name}"',
                why="this relay attached to it and did not launch it",
                fix="let the relay launch it: [launch]",
            )
        self.fleet.replace(replace(spec, launch=replace(spec.launch, image=image)))

    async def run(self) -> int:
        """Serve until `stop`. All changes to the machine are reverted before this returns or raises.

        Returns:
            The exit status of the application that ended the service, or 0.

        Raises:
            WgvsockError: The relay cannot start, or its last enclave can no longer be served.
        """
        inherited = self._journal.open()
        try:
            _log.info("the relay is starting", extra=fields(inherited=inherited))
            self._judgements.open()
            with ExitStack() as stack:
                specs = self.config.specs()
                await self.fleet.open([await self._as_it_runs(spec, specs) for spec in specs])
                for error in await self._journal.undo_inherited():
                    _log.error("%s", error)
                await self._start_endpoints(stack)
                self._state = State.READY
                if self._keep_flows is not None:
                    self.fleet.stop(keep_flows=self._keep_flows)
                if self._reload_asked:
                    self.reload()
                await self.fleet.serve()
                self._state = State.STOPPING
                return self.fleet.exit_status
        finally:
            await self.fleet.close()
            self._journal.close()
            left = self._journal.changes
            _log.info("the relay has stopped and %s", f"left {len(left)} changes" if left else "reverted its changes")

    async def _as_it_runs(self, spec: EnclaveSpec, specs: Collection[EnclaveSpec]) -> EnclaveSpec:
        """Find the enclave that an earlier run left under a successor's name, so that its connections continue.

        A crash during a replacement may leave two enclaves. Then the one with the successor's name is terminated.
        """
        other = spec.renamed()
        ours, others = self._launchers(spec), self._launchers(other)
        if spec.launch is None or ours is None or others is None:
            return spec
        try:
            if not await others.has_leftover():
                return spec
            if spec.launch.leftover == "adopt" and not await ours.has_leftover():
                return self._where_it_was(other, specs)
            await others.end_leftover()
        except NitroCliError as error:
            extra = error_fields(error, enclave=spec.name)
            _log.warning("cannot tell whether an earlier run left an enclave", extra=extra)
        return spec

    def _where_it_was(self, moved: EnclaveSpec, specs: Collection[EnclaveSpec]) -> EnclaveSpec:
        """The spec with its earlier interface and link, unless they are unknown or another enclave has them now."""
        taken = set().union(*(spec.places for spec in specs))
        interfaces = self._journal.scope(moved.owner).targets(ROUTING_RULE)
        place = numbered(interfaces[-1]) if interfaces else None
        if place is None or place in taken or moved.home is None:
            return moved
        return moved.home.successor(place)

    def _attendant(self, spec: EnclaveSpec) -> Attendant:
        return Attendant(
            Room(
                spec,
                self._machine,
                self._journal.scope(spec.owner),
                self._judgements,
                incarnation=self.incarnation,
                launcher=self._launchers(spec),
                timings=self._timings,
                deadlines=self._deadlines,
                show=self._show,
            )
        )

    def snapshot(self) -> RelaySnapshot:
        """The relay's state at this moment."""
        reload = self._orders.last("reload")
        return RelaySnapshot(self.config.name, os.getpid(), self._state, self.fleet.snapshots(), reload)

    async def _start_endpoints(self, stack: ExitStack) -> None:
        listeners: dict[StreamAddress, Routes] = {
            self.config.control_socket(): self._probes() | self._exposed("status", "control", "own")
        }
        if self.config.health.listen is not None:
            # There is no authentication here, so only the configured routes tell of the machine or change anything.
            listeners[self.config.health.listen] = self._probes() | self._exposed(*self.config.health.expose)
        stack.callback(self._captures.close)
        for address, routes in listeners.items():
            endpoint = Endpoint(address, routes)
            await endpoint.start()
            stack.callback(endpoint.close)

    def _probes(self) -> RouteTable:
        return {
            ("GET", "/live"): live_answer,
            ("GET", "/ready"): lambda: ready_answer(self.snapshot()),
            ("GET", "/metrics"): lambda: Answer(metrics(relay_status(self.snapshot()))),
        }

    def _exposed(self, *names: str) -> RouteTable:
        asked = self._inquiries
        routes: dict[str, RouteTable] = {
            "status": {
                ("GET", "/status"): lambda: as_json(relay_status(self.snapshot())),
                ("GET", "/egress"): Inquiry(asked.egress),
                ("GET", "/egress/test"): Inquiry(asked.try_egress),
            },
            "control": {
                ("POST", "/reattest"): lambda: order_answer(self.reattest()),
                ("POST", "/reload"): Inquiry(lambda _: self._ordered(self.reload())),
                ("GET", "/order"): Inquiry(lambda query: self._ordered(self._orders.find(query.get("number", "")))),
                ("POST", "/replace"): Inquiry(self._asked_to_replace),
                ("POST", "/ping"): Inquiry(asked.ping),
                ("POST", "/signal"): Inquiry(asked.signal),
            },
            # Only on the control socket.
            "own": {
                ("GET", "/logs"): Inquiry(asked.logs),
                ("POST", "/netcheck"): Inquiry(asked.look_beyond),
                ("GET", "/capture"): Takeover(self._captures.take),
            },
        }
        return {route: answer for name in names for route, answer in routes[name].items()}

    async def _ordered(self, order: Order | None) -> Answer:
        """Wait for an order for as long as a client waits, and return its result so far."""
        if order is not None:
            await wait_for(order, LOGS_PATIENCE)
        return order_answer(order)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._machine.wall_clock() / 1e9, UTC)

    async def _asked_to_replace(self, query: Mapping[str, str]) -> Answer:
        try:
            self.replace(query.get("enclave", ""), query.get("image", ""))
        except ReplacementError as error:
            return replace_refusal(error)
        return as_json({"schema": SCHEMA, "accepted": True}, HTTPStatus.ACCEPTED)
