"""The attacker of the flood test, against the real port on a Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lab.programs import flooder as flooder_module
from lab.programs.flooder import HOLD, Flooder, flood, main
from wgvsock.addresses import UnixAddress
from wgvsock.enclave.provisioner import ProvisioningServer
from wgvsock.provisioning import LISTEN_BACKLOG, MAX_WAITING, EnclaveProvisioning, public_key_of
from wgvsock.provisioning.errors import AuthFailedError, BusyError
from wgvsock.testing import SeededRandom, without_waiting
from wgvsock.transports.sockets import listen_stream

PIN = public_key_of(b"p" * 32)


class Port:
    """A pinned enclave's, with the errors that strangers received."""

    def __init__(self, address: UnixAddress) -> None:
        self.machine = EnclaveProvisioning(random=SeededRandom("port"), relay_pin=PIN)
        loop = asyncio.get_running_loop()
        listener = listen_stream(address, backlog=LISTEN_BACKLOG)
        self.server = ProvisioningServer(listener, self.machine, self.work, clock=loop.time, work_clock=lambda: 0.0)
        self.turned_away: dict[type[Exception], int] = {}

    async def work(self, event: Any) -> None:
        for error, count in event.ends:
            self.turned_away[type(error)] = self.turned_away.get(type(error), 0) + count


@asynccontextmanager
async def running(task: asyncio.Future[Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def crowd(path: Path, kind: str, rate: float, seconds: float) -> tuple[Port, Flooder]:
    address = UnixAddress(str(path / "p"))
    port, attacker = Port(address), Flooder(address, kind, PIN)
    async with running(asyncio.ensure_future(port.server.serve())):
        async with running(asyncio.ensure_future(attacker.run(rate))):
            await asyncio.sleep(seconds)
        await asyncio.sleep(2.0)  # for the enclave's report
    return port, attacker


@without_waiting
async def test_silent_connections_are_evicted(tmp_path: Path) -> None:
    port, attacker = await crowd(tmp_path, "connect", 200.0, 2.0)
    assert attacker.counts["connected"] >= 390
    assert port.turned_away[BusyError] >= attacker.counts["connected"] - MAX_WAITING


@without_waiting
async def test_those_that_hold_go_by_themselves(tmp_path: Path) -> None:
    port, attacker = await crowd(tmp_path, "hold", 13.0, HOLD + 2.0)
    assert attacker.counts["greeted"] == attacker.counts["connected"] >= 60
    assert BusyError not in port.turned_away


@without_waiting
async def test_a_forgery_gets_as_far_as_its_signature(tmp_path: Path) -> None:
    port, attacker = await crowd(tmp_path, "forge", 50.0, 2.0)
    assert port.turned_away[AuthFailedError] == attacker.counts["ended by the Enclave"] >= 95


@without_waiting
async def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    attacker = Flooder(UnixAddress(str(tmp_path / "none")), "connect", PIN)
    async with running(asyncio.ensure_future(attacker.run(10.0))):
        await asyncio.sleep(1.05)
    assert attacker.counts["refused"] == attacker.counts["attempts"] >= 10


def test_the_summary_comes_when_it_is_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def terminated(attacker: Flooder, rate: float) -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await flood(attacker, rate)

    monkeypatch.setattr(flooder_module, "flood", terminated)
    assert main(["connect", "--rate", "10", f"unix:{tmp_path}/none"]) == 0
    assert "seconds" in json.loads(capsys.readouterr().out)
