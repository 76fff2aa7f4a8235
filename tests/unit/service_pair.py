"""A relay and an enclave in one process and one event loop: production services on kernels in memory.

Only the machine is replaced: TUN, rtnetlink, nft and the security module. The streams are Unix sockets in the test's
folder. WireGuard, provisioning and attestation are real. Use it inside `without_waiting`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from wgvsock import settings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.status import enclave_status
from wgvsock.enclave.supervisor import EnclaveSupervisor
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.enclaves.attendant import Attendant
from wgvsock.relay.sections import AttestationSettings
from wgvsock.relay.service import MakeLauncher, RelayService
from wgvsock.relay.snapshots import Readiness
from wgvsock.relay.status import relay_status
from wgvsock.testing import MemoryTun
from wgvsock.testing.kernel import MemoryFilter, MemoryKernel
from wgvsock.testing.machine import MemoryMachine

_T = TypeVar("_T")


def relay_config(folder: Path, enclave: LabEnclave, root: bytes, extra: str = "") -> RelayConfig:
    """A relay.toml for this pair, followed by the TOML in `extra`."""
    pcrs = "\n".join(f'pcr{index} = "{enclave.measurements[index].hex()}"' for index in (0, 1, 2))
    text = f"""
        runtime_directory = "{folder / "relay"}"
        [enclave]
        address = "unix:{folder / "w"}"
        provisioning_address = "unix:{folder / "p"}"
        addresses = ["10.73.0.2/24", "fd73::2/64"]
        [interface]
        addresses = ["10.73.0.1/24", "fd73::1/64"]
        [attestation]
        root_sha256 = ["{root.hex()}"]
        [[attestation.pcr_sets]]
        {pcrs}
        [dns]
        servers = ["10.96.0.10"]
        search = []
        options = []
        {extra}
    """
    return settings.parse(RelayConfig, text)


def enclave_config(folder: Path, extra: str = "") -> EnclaveConfig:
    """An enclave.toml for this pair."""
    text = f"""
        runtime_directory = "{folder / "enclave"}"
        listen = "unix:{folder / "w"}"
        provisioning_listen = "unix:{folder / "p"}"
        resolv_conf = "{folder / "resolv.conf"}"
        {extra}
    """
    return settings.parse(EnclaveConfig, text)


def status_of(relay: RelayService) -> dict[str, Any]:
    """The relay's report of its only enclave."""
    (enclave,) = relay_status(relay.snapshot())["enclaves"]
    return dict(enclave)


class ServicePair:
    """Both services, their machines, and the test's actions on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = LabAuthority(utc_now)
        self.lab_enclave = LabEnclave()
        self.machine = MemoryMachine()
        self.enclave_machine = MemoryMachine()
        self.machine.other_end = self.enclave_machine
        self.config = relay_config(folder, self.lab_enclave, self.authority.root_fingerprint)
        self.enclave_config = enclave_config(folder)
        self.reloaded: Callable[[], RelayConfig] | None = lambda: self.config
        self.relay: RelayService
        self.enclave: EnclaveSupervisor
        self.tasks: list[asyncio.Task[Any]] = []
        self.shown: list[str] = []
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def next_relay_machine(self) -> None:
        """The next relay starts on another machine, with its own kernel and packet filter."""
        self.machine = MemoryMachine()
        self.machine.other_end = self.enclave_machine

    @property
    def relay_kernel(self) -> MemoryKernel:
        """Of the relay's machine."""
        return self.machine.kernel

    @property
    def filter(self) -> MemoryFilter:
        """Of the relay's machine."""
        return self.machine.filter

    @property
    def relay_tuns(self) -> list[MemoryTun]:
        """Of the relay's machine."""
        return self.machine.tuns

    @property
    def enclave_kernel(self) -> MemoryKernel:
        """Of the enclave."""
        return self.enclave_machine.kernel

    @property
    def enclave_tuns(self) -> list[MemoryTun]:
        """Of the enclave."""
        return self.enclave_machine.tuns

    @property
    def attendant(self) -> Attendant:
        """The attendant of the only enclave."""
        (attendant,) = self.relay.fleet.attendants
        return attendant

    @property
    def is_set_up(self) -> bool:
        """Whether the only enclave's room is open."""
        return bool(self.relay.fleet.members) and self.attendant.room.is_open

    @property
    def policy(self) -> AttestationSettings:
        """Which enclaves the relay accepts."""
        assert self.config.attestation is not None
        return self.config.attestation

    def status(self) -> dict[str, Any]:
        """The relay's report of the only enclave."""
        return status_of(self.relay)

    def enclave_status(self) -> dict[str, Any]:
        """The enclave's report of itself."""
        return enclave_status(self.enclave.snapshot())

    def readiness(self) -> Readiness:
        """The only enclave's."""
        return self.attendant.readiness()

    def start_enclave(self, command: Sequence[str] = (), module: Any = None) -> asyncio.Task[int]:
        """Boot the enclave: each boot has a fresh security module."""
        nsm = module or FakeNsm(self.authority, self.lab_enclave)
        self.enclave = EnclaveSupervisor(self.enclave_config, self.enclave_machine, nsm, seed=lambda _: None)
        return self._keep(asyncio.ensure_future(self.enclave.run(command)))

    def start_relay(self, launchers: MakeLauncher = lambda _: None) -> asyncio.Task[int]:
        """Start the relay."""

        def reload_config() -> RelayConfig:
            assert self.reloaded is not None
            return self.reloaded()

        self.relay = RelayService(
            self.config,
            self.machine,
            reload_config=reload_config if self.reloaded else None,
            launchers=launchers,
            show=self.shown.append,
        )
        return self._keep(asyncio.ensure_future(self.relay.run()))

    def _keep(self, task: asyncio.Task[_T]) -> asyncio.Task[_T]:
        self.tasks.append(task)
        return task

    def set_faults(self, **faults: Any) -> None:
        """Set the fault of the enclave's security module from now on."""
        self.lab_enclave.faults = replace(Faults(), **faults)

    async def until(self, condition: Callable[[], object], what: str, *, limit: float = 300.0) -> None:
        """Run the services until something holds. `limit` is in the loop's seconds, which take no time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while not condition():
            for task in self.tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    task.result()
            assert loop.time() < end, f"waited for {what}"
            await asyncio.sleep(0.01)

    async def up(self) -> None:
        """Start both and wait until packets may pass."""
        self.start_enclave()
        self.start_relay()
        await self.until(self.is_ready, "readiness")

    def is_ready(self) -> bool:
        """Whether the relay reports it."""
        return self.is_set_up and self.readiness().ready

    async def kill(self, task: asyncio.Task[Any]) -> None:
        """Stop a service's task as a cancelled program does."""
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def down(self) -> None:
        """Stop everything that is still running, as SIGTERM does."""
        for name in ("relay", "enclave"):
            service = getattr(self, name, None)
            if service is not None:
                service.stop()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task
