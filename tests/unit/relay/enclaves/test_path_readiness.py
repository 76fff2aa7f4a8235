"""Ready means that packets pass: the path probe in a whole relay, with a kernel in the enclave that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.unit.service_pair import ServicePair
from wgvsock.testing import without_waiting
from wgvsock.testing.echo import answer, is_request


class EnclaveKernel:
    """Answers echo requests while it is told to. All other packets are lost."""

    def __init__(self, pair: ServicePair) -> None:
        self.answers = True
        self._pair = pair
        self._tun = pair.enclave_tuns[0]

    def work(self) -> None:
        while (packet := self._tun.take()) is not None:
            if self.answers and is_request(packet, self._tun.packet_headroom):
                self._tun.inject(answer(packet, self._tun.packet_headroom))

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """The same as `ServicePair.until`, while this kernel works."""

        def look() -> object:
            self.work()
            return condition()

        await self._pair.until(look, what)

    async def until_path(self, alive: bool | None) -> None:
        await self.until(lambda: self._pair.status()["path"]["alive"] is alive, f"the path to be {alive}")


async def started(pair: ServicePair) -> EnclaveKernel:
    await pair.up()
    kernel = EnclaveKernel(pair)
    await kernel.until_path(alive=True)
    return kernel


def attempts(pair: ServicePair) -> int:
    found: int = pair.status()["provisioning"]["attempts"]["ok"]
    return found


@without_waiting
async def test_a_path_that_dies_ends_readiness_until_it_is_back(pair: ServicePair) -> None:
    kernel = await started(pair)
    kernel.answers = False
    await kernel.until_path(alive=False)
    assert not pair.is_ready()
    assert pair.status()["state"] == "ready"
    pair.relay.reattest()
    await kernel.until(lambda: attempts(pair) == 2, "another attestation")
    assert pair.status()["conditions"]["path"] is False
    kernel.answers = True
    await kernel.until_path(alive=True)
    assert pair.is_ready()
    assert pair.status()["path"]["lost"] >= 3
    await pair.down()


@without_waiting
async def test_an_enclave_that_answers_no_echo_stays_ready(pair: ServicePair) -> None:
    await pair.up()
    await pair.until(lambda: pair.status()["path"]["lost"] >= 5, "losses")
    assert pair.status()["conditions"]["path"] is None
    assert pair.is_ready()
    await pair.down()


@without_waiting
async def test_an_enclave_that_is_given_up_has_no_path(pair: ServicePair) -> None:
    await started(pair)
    await pair.kill(pair.tasks[0])
    await pair.until(lambda: not pair.status()["wireguard"]["peers"], "the loss")
    assert pair.status()["path"]["alive"] is None
    await pair.down()


@without_waiting
async def test_ping_looks_through_all_layers(pair: ServicePair) -> None:
    kernel = await started(pair)
    asking = asyncio.ensure_future(pair.attendant.room.ping())
    await kernel.until(asking.done, "the reply")
    found = asking.result()
    assert (found.stream, found.handshake, found.destination) == (True, True, destination(pair))
    assert found.echo is not None
    await pair.kill(pair.tasks[0])
    await pair.until(lambda: not pair.status()["wireguard"]["peers"], "the loss")
    gone = await pair.attendant.room.ping()
    assert (gone.stream, gone.handshake, gone.echo) == (False, False, None)
    await pair.down()


def destination(pair: ServicePair) -> str:
    (first, *_) = pair.attendant.spec.enclave.addresses
    return str(first.ip)


@without_waiting
async def test_the_control_socket_is_asked_by_the_enclaves_name(pair: ServicePair) -> None:
    kernel = await started(pair)

    async def ask(**query: str) -> tuple[int, Any]:
        asking = asyncio.ensure_future(pair.relay._inquiries.ping(query))
        await kernel.until(asking.done, "the answer")
        answered = asking.result()
        return answered.status, answered.body

    name = pair.status()["name"]
    for query in ({}, {"enclave": name}):
        status, body = await ask(**query)
        assert status == 200
        assert f'"enclave": "{name}", "stream": {{"ok": true' in body
    status, body = await ask(enclave="nobody")
    assert status == 404
    assert f'"enclaves": ["{name}"]' in body
    await pair.down()
