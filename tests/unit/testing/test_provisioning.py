"""The double itself: what its shell does, and that a test can replace the shell."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from wgvsock.attestation.policy import Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import Verifier
from wgvsock.provisioning import (
    AttestationNeeded,
    ConfigurationOffered,
    ExchangeEnded,
    ExchangeState,
    LinkState,
    ProvisioningFailed,
)
from wgvsock.provisioning.messages import Hello, decode_request, decode_result
from wgvsock.provisioning.transcript import Ephemeral
from wgvsock.testing.clock import ManualClock
from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, TUNNEL_CONFIG, EnclaveHalf, ProvisioningPair, RelayHalf

PCRS = PcrSet({index: bytes((index + 1,)) * 48 for index in range(3)})


@pytest.fixture
def pair() -> ProvisioningPair:
    """No document satisfies this verifier: the double needs no laboratory."""
    return ProvisioningPair(
        verifier=Verifier(Policy(pcr_sets=(PCRS,))),
        attest=lambda needed: needed.user_data,
        expectations=Expectations(user_data=b""),
        wireguard_public_key=b"k" * 32,
        clock=ManualClock(),
    )


def test_the_shell_applies_attests_and_takes_back(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    assert isinstance(connection.run(), ProvisioningFailed)
    names = [type(event).__name__ for event in pair.events]
    assert names == ["ConfigurationOffered", "AttestationNeeded", "ConfigurationRolledBack", "ExchangeEnded"]
    assert pair.in_force is None
    assert [len(connection.sent_by_enclave), len(connection.sent_by_relay)] == [2, 2]


def test_the_shell_holds_what_was_activated(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    connection.to_enclave = lambda data: data if len(data) > 40 else b""  # the relay's verdict gets lost
    connection.run()
    held = pair.in_force
    assert held is not None
    pair.in_force = None
    pair.enclave.activate(RELAY_PUBLIC_KEY, pair.clock.now)
    pair.drain()
    assert pair.in_force is held
    assert pair.enclave.state is LinkState.ACTIVE


def test_a_test_can_be_the_shell(pair: ProvisioningPair) -> None:
    pair.applies = pair.attests = False
    connection = pair.connect()
    connection.run()
    [offered] = pair.events
    assert isinstance(offered, ConfigurationOffered)
    assert connection.exchange.state is ExchangeState.APPLYING
    offered.exchange.configuration_applied(b"k" * 32, pair.clock.now)
    [needed] = pair.drain()
    assert isinstance(needed, AttestationNeeded)
    connection.exchange.receive_eof()
    assert isinstance(pair.drain()[-1], ExchangeEnded)


def test_what_the_relay_sent_can_be_read(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    connection.run()
    request, result = connection.opened_by_enclave
    assert decode_request(request).relay_public_key == RELAY_PUBLIC_KEY
    assert decode_result(result).code != 0


def test_two_halves_understand_each_other() -> None:
    hello = Hello(b"n" * 32, Ephemeral(b"e" * 32).public, ()).encode()
    relay = RelayHalf(hello)
    enclave = EnclaveHalf(hello, relay.request(b"request"))
    assert enclave.request == b"request"
    assert relay.open(enclave.response(b"response")) == b"response"
    assert enclave.open(relay.result(b"result")) == b"result"


def test_the_double_s_configuration_is_valid_and_its_clock_is_utc(pair: ProvisioningPair) -> None:
    TUNNEL_CONFIG.validate()
    assert pair.utc_now() == datetime(2027, 1, 15, 8, tzinfo=UTC)
