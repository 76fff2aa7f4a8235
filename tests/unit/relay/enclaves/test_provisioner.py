"""The network side of an exchange: a socket pair whose other end is the test's."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lab.nsm.attested import attested_enclave
from wgvsock.addresses import Cid
from wgvsock.provisioning import Deadlines, EnclaveProvisioned, ProvisioningFailed, TunnelConfig
from wgvsock.provisioning.errors import BusyError, ConnectionLostError, ExchangeTimeoutError
from wgvsock.relay.enclaves import provisioner
from wgvsock.relay.enclaves.interface import Uplink, make_tunnel_config
from wgvsock.relay.enclaves.provisioner import Provisioner, run_exchange
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing import without_waiting
from wgvsock.wireguard.primitives import public_key

PROVISIONED = EnclaveProvisioned(
    attested_enclave(public_key(b"\x11" * 32)), b"p" * 32, TunnelConfig((), (), 1500, ()), ("framing/native",)
)


class Exchange:
    """A `RelayProvisioning` that follows a script: what arrives, and its reaction."""

    def __init__(self, answers: dict[bytes, Any], first: bytes = b"") -> None:
        self.answers = answers
        self.outgoing = first
        self.event: Any = None
        self.closed = False

    def next_deadline(self) -> float | None:
        return None if self.closed else asyncio.get_running_loop().time() + 10

    def handle_timers(self, now: float) -> None:
        self.finish(ProvisioningFailed(ExchangeTimeoutError("too late")))

    def receive_eof(self) -> None:
        self.finish(self.event or ProvisioningFailed(ConnectionLostError("gone")))

    def receive_data(self, data: bytes, now: float) -> None:
        self.outgoing += b"result"
        self.finish(self.answers[bytes(data)])

    def finish(self, event: Any) -> None:
        self.event, self.closed = event, True

    def data_to_send(self) -> bytes:
        data, self.outgoing = self.outgoing, b""
        return data

    def next_event(self) -> Any:
        event, self.event = self.event, None
        return event


def says(data: bytes) -> Callable[[socket.socket], None]:
    """Play the enclave: send this."""

    def play(peer: socket.socket) -> None:
        peer.sendall(data)

    return play


async def run(exchange: Any, play: Callable[[socket.socket], None]) -> EnclaveProvisioned:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        asyncio.get_running_loop().call_soon(play, theirs)
        result = await run_exchange(ours, exchange)
        assert theirs.recv(100) == b"result"  # the last word leaves before the outcome is reported
        return result


@without_waiting
async def test_success() -> None:
    assert await run(Exchange({b"yes": PROVISIONED}), says(b"yes")) is PROVISIONED


@without_waiting
async def test_a_refusal_is_raised_after_the_result_was_sent() -> None:
    exchange = Exchange({b"no": ProvisioningFailed(BusyError("no"))})
    with pytest.raises(BusyError):
        await run(exchange, says(b"no"))


@without_waiting
async def test_a_kernel_without_memory_delays_the_request() -> None:
    class Poor(socket.socket):
        failures = 3

        def send(self, *arguments: Any) -> int:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.ENOBUFS, "as the test says")
            return super().send(*arguments)

    ours, theirs = socket.socketpair()
    with theirs, Poor(fileno=ours.detach()) as poor:
        poor.setblocking(False)
        theirs.send(b"yes")
        assert await run_exchange(poor, Exchange({b"yes": PROVISIONED}, b"request")) is PROVISIONED  # type: ignore[arg-type]
        assert theirs.recv(100) == b"requestresult"


@without_waiting
async def test_the_enclave_closes() -> None:
    with pytest.raises(ConnectionLostError):
        await run(Exchange({}), lambda peer: peer.close())


@without_waiting
async def test_the_enclave_is_gone_before_the_request() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.setblocking(False)
    with ours, pytest.raises(ConnectionLostError):
        await run_exchange(ours, Exchange({}, b"request"))  # type: ignore[arg-type]


@without_waiting
async def test_a_reset() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.send(b"never read")
    theirs.close()
    with ours, pytest.raises(ConnectionLostError):
        await run_exchange(ours, Exchange({}))  # type: ignore[arg-type]


@without_waiting
async def test_silence_ends_at_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ExchangeTimeoutError):
        await run(Exchange({}), lambda peer: None)
    assert loop.time() - began == pytest.approx(10)


@without_waiting
async def test_a_relay_connects_and_its_epochs_grow(spec: EnclaveSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    theirs: list[socket.socket] = []

    async def connect(address: object, *, deadline: float) -> socket.socket:
        assert deadline == asyncio.get_running_loop().time() + 7
        ours, their = socket.socketpair()
        ours.setblocking(False)
        theirs.append(their)
        their.sendall(b"yes")
        return ours

    def make(**arguments: Any) -> Exchange:
        made.append(arguments)
        return Exchange({b"yes": PROVISIONED})

    monkeypatch.setattr(provisioner, "connect_stream", connect)
    monkeypatch.setattr(provisioner, "RelayProvisioning", make)
    now = datetime(2026, 11, 23, tzinfo=UTC)
    subject = Provisioner(b"s" * 32, bytes, lambda: now, 1_790_000_000_000, Deadlines(exchange=7))
    tunnel = make_tunnel_config(spec, Uplink(((4, "eth0"), (6, "eth0")), 1500, frozenset({4})), ResolverSettings())
    running = "i-0123456789abcdef0-enc0000000000000001"
    configured = replace(spec, attestation=replace(spec.attestation, module_id="i-0fedcba9876543210-enc2"))
    assert await subject.provision(spec, tunnel, b"k" * 32) is PROVISIONED
    assert await subject.provision(spec, tunnel, b"k" * 32, attested_before=running) is PROVISIONED
    assert await subject.provision(configured, tunnel, b"k" * 32, attested_before=running, launched_cid=Cid(17))
    subject.profile = "plain"
    assert await subject.provision(spec, tunnel, b"k" * 32) is PROVISIONED
    first, second, third, fourth = made
    assert first["capabilities"] == ("framing/native", "profile/gso", "profile/plain")
    assert fourth["capabilities"] == ("framing/native", "profile/plain", "profile/gso")
    assert first["expectations"].enclave_id is None
    assert second["expectations"].enclave_id == running
    assert third["expectations"].enclave_id == "i-0fedcba9876543210-enc2"
    assert (first["launched_cid"], third["launched_cid"]) == (None, 17)
    assert first["epoch_ms"] == int(now.timestamp() * 1000)
    assert second["epoch_ms"] == first["epoch_ms"] + 1  # though the clock stands still
    assert first["signing_seed"] == b"s" * 32
    assert first["relay_public_key"] == b"k" * 32
    assert first["incarnation"] == second["incarnation"] == 1_790_000_000_000
    assert first["connected_cid"] is None
    assert first["expectations"].wireguard_key_pcr == 16
    for their in theirs:
        their.close()
