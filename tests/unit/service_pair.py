"""A relay and an enclave in one process and one event loop: production services on kernels in memory.

Only the machine is replaced: TUN, rtnetlink, nft and the security module. The streams are Unix sockets in a folder of
the test's, WireGuard, provisioning and attestation are the real ones. Use it inside `without_waiting`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from wgvsock import settings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.supervisor import EnclaveSupervisor
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.launcher import Launcher
from wgvsock.relay.supervisor import RelaySupervisor
from wgvsock.testing import MemoryTun
from wgvsock.testing.kernel import MemoryFilter, MemoryKernel

_T = TypeVar("_T")


def relay_config(folder: Path, enclave: LabEnclave, root: bytes, extra: str = "") -> RelayConfig:
    """A relay.toml for this pair; `extra` is TOML that follows."""
    pcrs = "\n".join(f'pcr{index} = "{enclave.measurements[index].hex()}"' for index in (0, 1, 2))
    text = f"""
        runtime_directory = "{folder / "relay"}"
        [enclave]
        address = "unix:{folder / "w"}"
        provisioning_address = "unix:{folder / "p"}"
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


async def call_inline(call: Callable[[], _T], **_: float) -> _T:
    """In place of `call_in_thread`: a thread would make the jumping clock jump."""
    return call()


async def to_thread_inline(call: Callable[..., _T], *arguments: Any) -> _T:
    """In place of `asyncio.to_thread`."""
    return call(*arguments)


class ServicePair:
    """Both services, their machines, and what a test does to them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.authority = LabAuthority(utc_now)
        self.lab_enclave = LabEnclave()
        self.relay_kernel, self.enclave_kernel = MemoryKernel(), MemoryKernel()
        self.filter = MemoryFilter()
        self.relay_tuns: list[MemoryTun] = []
        self.enclave_tuns: list[MemoryTun] = []
        self.flows_forgiven = 0
        self.config = relay_config(folder, self.lab_enclave, self.authority.root_fingerprint)
        self.enclave_config = enclave_config(folder)
        self.reloaded: Callable[[], RelayConfig] = lambda: self.config
        self.relay: RelaySupervisor
        self.enclave: EnclaveSupervisor
        self.tasks: list[asyncio.Task[Any]] = []
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self._replace_machines(monkeypatch)

    def _replace_machines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def opener(tuns: list[MemoryTun]) -> Callable[..., MemoryTun]:
            def open_tun(name: str, *, packet_headroom: int = 0) -> MemoryTun:
                tuns.append(MemoryTun(packet_headroom))
                return tuns[-1]

            return open_tun

        def forgive(networks: object) -> int:
            self.flows_forgiven += 1
            return 1

        async def choose() -> str:
            return "nft"

        relay, enclave = "wgvsock.relay.supervisor", "wgvsock.enclave.supervisor"
        monkeypatch.setattr(f"{relay}.open_tun", opener(self.relay_tuns))
        monkeypatch.setattr(f"{enclave}.open_tun", opener(self.enclave_tuns))
        monkeypatch.setattr(f"{relay}.open_netlink", self.relay_kernel.open)
        monkeypatch.setattr(f"{enclave}.open_netlink", self.enclave_kernel.open)
        monkeypatch.setattr("wgvsock.system.netfilter.run_tool", self.filter)
        monkeypatch.setattr("wgvsock.system.netfilter.choose_backend", choose)
        monkeypatch.setattr(f"{enclave}.call_in_thread", call_inline)
        monkeypatch.setattr("wgvsock.relay.nat.asyncio.to_thread", to_thread_inline)
        monkeypatch.setattr("wgvsock.system.conntrack.forgive_interruption", forgive)

    def start_enclave(self, command: Sequence[str] = (), module: Any = None) -> asyncio.Task[int]:
        """Boot the enclave: each boot has a fresh security module."""
        nsm = module or FakeNsm(self.authority, self.lab_enclave)
        self.enclave = EnclaveSupervisor(
            self.enclave_config, nsm, clock=asyncio.get_running_loop().time, seed=lambda _: None
        )
        return self._keep(asyncio.ensure_future(self.enclave.run(command)))

    def start_relay(self, launcher: Launcher | None = None) -> asyncio.Task[None]:
        """Start the relay."""

        def reload_config() -> RelayConfig:
            return self.reloaded()

        clock = asyncio.get_running_loop().time
        self.relay = RelaySupervisor(self.config, reload_config=reload_config, launcher=launcher, clock=clock)
        return self._keep(asyncio.ensure_future(self.relay.run()))

    def _keep(self, task: asyncio.Task[_T]) -> asyncio.Task[_T]:
        self.tasks.append(task)
        return task

    def set_faults(self, **faults: Any) -> None:
        """What is wrong with the enclave's security module from now on."""
        self.lab_enclave.faults = replace(Faults(), **faults)

    async def until(self, condition: Callable[[], object], what: str, *, limit: float = 300.0) -> None:
        """Let the services run until something holds; `limit` is in the loop's seconds, which take no time."""
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
        """Whether the relay says so."""
        return hasattr(self.relay, "_nat") and self.relay.readiness().ready

    async def kill(self, task: asyncio.Task[Any]) -> None:
        """Stop a service's task as a cancelled program does."""
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def down(self) -> None:
        """Stop whatever still runs, as SIGTERM does."""
        for name in ("relay", "enclave"):
            service = getattr(self, name, None)
            if service is not None:
                service.stop()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task
