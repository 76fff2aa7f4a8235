"""The provisioning machine's orders, carried out. test_supervisor.py tests the whole."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from wgvsock.devices.nsm import NsmClient, NsmError
from wgvsock.enclave.assignments import Assignments
from wgvsock.enclave.clock import ClockSettings, EnclaveClock
from wgvsock.enclave.orders import Orders
from wgvsock.provisioning import (
    Assignment,
    AttestationNeeded,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    ExchangeEnded,
    StrangersTurnedAway,
    TunnelConfig,
)
from wgvsock.provisioning.errors import ExchangeTimeoutError
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.testing.machine import MemoryMachine
from wgvsock.testing.provisioning import TUNNEL_CONFIG
from wgvsock.wireguard import Device

ASSIGNMENT = Assignment(b"\x11" * 32, b"p" * 32, TUNNEL_CONFIG, incarnation=1)
ERROR = ExchangeTimeoutError("too late")


class Recorder:
    """Replaces the exchange, the assignments and the module, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> Any:
            self.calls.append(name)
            if name == "attest":
                return self._result(b"document")
            return self._later() if name in {"apply", "activate", "roll_back"} else None

        return call

    async def _later(self) -> object:
        return self._result(5.0)

    def _result(self, value: object) -> object:
        if self.fails is not None:
            raise self.fails
        return value


class Agent:
    def __init__(self) -> None:
        self.recorder = Recorder()
        self.configured: list[list[TunnelConfig]] = []
        device = Device(random=lambda size: b"\x01" * size, wall_clock=lambda: 0)
        device.set_private_key(b"\x40" * 32, 0.0)
        machine = MemoryMachine()
        machine.monotonic = lambda: 5.0  # type: ignore[method-assign]
        self.clock = EnclaveClock(machine, ClockSettings())
        self.orders = Orders(
            machine,
            device,
            cast("NsmClient", self.recorder),
            cast("Assignments", self.recorder),
            self.clock,
            module_timeout=1.0,
            on_configured=lambda configs: self.configured.append(list(configs)),
        )

    def do(self, event: Any, fails: Exception | None = None) -> list[str]:
        self.recorder.fails = fails
        self.recorder.calls.clear()
        asyncio.run(self.orders.carry_out(event))
        return self.recorder.calls


def offered(agent: Agent) -> Any:
    return ConfigurationOffered(cast("Any", agent.recorder), ASSIGNMENT, None)


def needed(agent: Agent) -> Any:
    return AttestationNeeded(cast("Any", agent.recorder), b"n", b"k", b"u")


def test_an_offer_is_applied_or_the_failure_told() -> None:
    agent = Agent()
    assert agent.clock.offset is None
    assert agent.do(offered(agent)) == ["apply", "configuration_applied"]
    assert agent.clock.offset is not None  # the request has the relay's time
    assert agent.do(offered(agent), NetlinkSetupError("no")) == ["apply", "configuration_failed"]


def test_while_two_settings_are_there_both_are_told() -> None:
    agent = Agent()
    agent.do(ConfigurationOffered(cast("Any", agent.recorder), ASSIGNMENT, ASSIGNMENT))
    agent.do(offered(agent))
    agent.do(offered(agent), NetlinkSetupError("no"))
    assert agent.configured == [[TUNNEL_CONFIG, TUNNEL_CONFIG], [TUNNEL_CONFIG]]


def test_a_document_is_fetched_or_the_failure_told() -> None:
    agent = Agent()
    assert agent.do(needed(agent)) == ["attest", "attestation_ready"]
    assert agent.do(needed(agent), NsmError("no")) == ["attest", "attestation_failed"]


def test_an_activation_brings_the_link_up_and_tells_the_settings() -> None:
    agent = Agent()
    assert not agent.orders.link_up.is_set()
    assert agent.do(ConfigurationActivated(ASSIGNMENT, None)) == ["activate"]
    assert agent.orders.link_up.is_set()
    assert agent.configured == [[TUNNEL_CONFIG]]


def test_a_rollback() -> None:
    agent = Agent()
    assert agent.do(ConfigurationRolledBack(ASSIGNMENT, None)) == ["roll_back"]
    assert agent.do(ConfigurationRolledBack(ASSIGNMENT, ASSIGNMENT)) == ["roll_back"]
    assert agent.configured == [[], [TUNNEL_CONFIG]]


def test_outcomes_are_counted() -> None:
    agent = Agent()
    agent.do(ExchangeEnded(cast("Any", None), None))
    agent.do(ExchangeEnded(cast("Any", None), ERROR))
    agent.do(StrangersTurnedAway(((ERROR, 3),)))
    assert agent.orders.attempts == {"ok": 1, "failed": 4}
