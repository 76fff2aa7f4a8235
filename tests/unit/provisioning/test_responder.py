"""The enclave over many connections: who may provision it, what is pending, what is taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import (
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    Deadlines,
    EnclaveProvisioned,
    EnclaveProvisioning,
    ExchangeEnded,
    LinkState,
    ProvisioningFailed,
    RelayEvent,
    public_key_of,
)
from wgvsock.provisioning.errors import ExchangeError, WireCode
from wgvsock.provisioning.messages import Error, decode_hello
from wgvsock.provisioning.responder import LINK_TRANSITIONS, LinkInput
from wgvsock.testing.clock import SeededRandom
from wgvsock.testing.provisioning import RELAY_PUBLIC_KEY, SIGNING_SEED, TUNNEL_CONFIG, ProvisioningPair

OTHER_SEED = b"another relay's signing seed...."
OTHER_KEY = bytes(range(2, 34))

MakePair = Callable[..., ProvisioningPair]


def _code(outcome: RelayEvent | None) -> WireCode:
    assert isinstance(outcome, ProvisioningFailed)
    assert isinstance(outcome.error, ExchangeError)
    return outcome.error.wire_code


def _accepted(outcome: RelayEvent | None) -> bool:
    return isinstance(outcome, EnclaveProvisioned)


def _state(pair: ProvisioningPair) -> LinkState:
    return pair.enclave.state


def _activate(pair: ProvisioningPair, key: bytes = RELAY_PUBLIC_KEY) -> None:
    pair.enclave.activate(key, pair.clock.now)
    pair.drain()
    assert _state(pair) is LinkState.ACTIVE


# Listener.


def test_one_exchange_at_a_time(pair: ProvisioningPair) -> None:
    first = pair.connect()
    second = pair.connect()
    assert second.exchange.closed
    assert _code(second.run()) is WireCode.BUSY
    assert _accepted(first.run())


def test_bursts_of_five_and_then_one_a_second() -> None:
    enclave = EnclaveProvisioning(random=SeededRandom("listener"))
    for _ in range(5):
        enclave.accept(0.0).receive_eof()
    refused = enclave.accept(0.9)
    error = decode_hello(refused.data_to_send()[4:])
    assert isinstance(error, Error)
    assert error.code == WireCode.RATE_LIMITED
    assert not enclave.accept(1.9).closed


def test_an_overdue_exchange_makes_room(pair: ProvisioningPair) -> None:
    idle = pair.connect()
    pair.clock.advance(3.0)
    assert _accepted(pair.provision())
    assert idle.exchange.closed


def test_the_end_of_every_exchange_is_reported(pair: ProvisioningPair) -> None:
    connection, busy = pair.connect(), pair.connect()
    connection.run()
    ends = {event.exchange: event.error for event in pair.events if isinstance(event, ExchangeEnded)}
    assert ends[connection.exchange] is None
    error = ends[busy.exchange]
    assert error is not None
    assert error.wire_code is WireCode.BUSY


def test_what_is_offered_can_be_less() -> None:
    enclave = EnclaveProvisioning(random=SeededRandom("less"), capabilities=["framing/native", "profile/plain"])
    hello = decode_hello(enclave.accept(0.0).data_to_send()[4:])
    assert not isinstance(hello, Error)
    assert hello.capabilities == ("framing/native", "profile/plain")


# States of the link.


def test_the_table_names_every_change() -> None:
    assert set(LINK_TRANSITIONS) == {
        (LinkState.UNPROVISIONED, LinkInput.APPLIED),
        (LinkState.PENDING, LinkInput.AUTHENTICATED),
        (LinkState.PENDING, LinkInput.WITHDRAWN),
        (LinkState.ACTIVE, LinkInput.APPLIED),
        (LinkState.REPLACING, LinkInput.AUTHENTICATED),
        (LinkState.REPLACING, LinkInput.WITHDRAWN),
    }


def test_provisioned_is_pending_until_the_relay_proves_itself(pair: ProvisioningPair) -> None:
    assert _state(pair) is LinkState.UNPROVISIONED
    outcome = pair.provision()
    assert isinstance(outcome, EnclaveProvisioned)
    assert _state(pair) is LinkState.PENDING
    assert pair.enclave.active is None
    assignment = pair.enclave.pending
    assert assignment is not None
    assert assignment.preshared_key == outcome.preshared_key

    pair.enclave.activate(RELAY_PUBLIC_KEY, pair.clock.now)
    assert pair.drain() == [ConfigurationActivated(assignment, None)]
    assert _state(pair) is LinkState.ACTIVE
    assert pair.enclave.active is assignment
    assert pair.enclave.pending is None
    assert pair.enclave.next_deadline() is None


def test_nobody_else_activates(pair: ProvisioningPair) -> None:
    pair.enclave.activate(RELAY_PUBLIC_KEY, pair.clock.now)
    pair.provision()
    pair.enclave.activate(OTHER_KEY, pair.clock.now)
    assert _state(pair) is LinkState.PENDING


def test_an_offer_that_is_not_applied_yet_is_not_activated(pair: ProvisioningPair) -> None:
    pair.applies = False
    pair.provision()
    pair.enclave.activate(RELAY_PUBLIC_KEY, pair.clock.now)
    assert _state(pair) is LinkState.UNPROVISIONED
    assert pair.enclave.pending is None


def test_pending_rolls_back_after_thirty_seconds(pair: ProvisioningPair) -> None:
    pair.provision()
    held = pair.enclave.pending
    assert held is not None
    assert pair.enclave.next_deadline() == pair.clock.now + 30.0
    pair.enclave.handle_timers(pair.clock.advance(29.9))
    assert _state(pair) is LinkState.PENDING
    pair.enclave.handle_timers(pair.clock.advance(0.1))
    assert pair.drain() == [ConfigurationRolledBack(held, None)]
    assert _state(pair) is LinkState.UNPROVISIONED
    assert pair.in_force is None
    assert _accepted(pair.provision(relay_public_key=OTHER_KEY, signing_seed=OTHER_SEED))


def test_activated_does_not_roll_back(pair: ProvisioningPair) -> None:
    pair.provision()
    _activate(pair)
    pair.enclave.handle_timers(pair.clock.advance(1e6))
    assert not pair.drain()
    assert _state(pair) is LinkState.ACTIVE


def test_a_late_failure_does_not_undo_what_the_relay_proved(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    connection.to_enclave = lambda data: data if len(data) > 20 else b""  # RESULT is on its way
    connection.run()
    _activate(pair)
    connection.exchange.receive_data(b"\0\0\0\7\xa3\1\1\2\3\3\1", pair.clock.now)
    pair.drain()
    assert _state(pair) is LinkState.ACTIVE


def test_deadlines_can_be_scaled(make_pair: MakePair) -> None:
    pair = make_pair(deadlines=Deadlines().scaled(10.0))
    pair.provision()
    assert pair.enclave.next_deadline() == pair.clock.now + 300.0


def test_the_earliest_deadline_counts(pair: ProvisioningPair) -> None:
    pair.provision()
    rollback = pair.clock.now + 30.0
    pair.clock.advance(25.0)
    pair.connect()
    assert pair.enclave.next_deadline() == pair.clock.now + 3.0 < rollback
    pair.enclave.handle_timers(pair.clock.advance(3.0))
    assert pair.enclave.next_deadline() == rollback


# Replacement: make before break.


def test_the_same_relay_replaces_its_assignment_under_traffic(pair: ProvisioningPair) -> None:
    first = pair.provision()
    _activate(pair)
    old = pair.enclave.active
    second = pair.provision(relay_public_key=OTHER_KEY)
    assert isinstance(first, EnclaveProvisioned)
    assert isinstance(second, EnclaveProvisioned)
    assert first.preshared_key != second.preshared_key

    [offered] = [event for event in pair.events if isinstance(event, ConfigurationOffered)][1:]
    assert offered.replaces is old
    assert _state(pair) is LinkState.REPLACING
    assert pair.enclave.active is old

    new = pair.enclave.pending
    pair.enclave.activate(RELAY_PUBLIC_KEY, pair.clock.now)  # the old session goes on, and proves nothing new
    assert _state(pair) is LinkState.REPLACING
    pair.enclave.activate(OTHER_KEY, pair.clock.now)
    assert new is not None
    assert pair.drain() == [ConfigurationActivated(new, old)]
    assert pair.enclave.active is new


def test_a_replacement_that_is_not_proved_leaves_the_old_one_in_force(pair: ProvisioningPair) -> None:
    pair.provision()
    _activate(pair)
    old = pair.enclave.active
    pair.provision()
    new = pair.enclave.pending
    assert new is not None
    pair.enclave.handle_timers(pair.clock.advance(30.0))
    assert pair.drain() == [ConfigurationRolledBack(new, old)]
    assert _state(pair) is LinkState.ACTIVE
    assert pair.in_force is old


def test_a_newer_request_displaces_a_pending_one_first(pair: ProvisioningPair) -> None:
    pair.provision()
    first = pair.enclave.pending
    assert first is not None
    pair.events.clear()
    assert _accepted(pair.provision(relay_public_key=OTHER_KEY))
    rolled_back, offered = pair.events[:2]
    assert rolled_back == ConfigurationRolledBack(first, None)
    assert isinstance(offered, ConfigurationOffered)
    assert offered.replaces is None
    assert pair.enclave.pending is not None
    assert pair.enclave.pending.relay_public_key == OTHER_KEY


# Who may ask: no pin.


@pytest.mark.parametrize("activated", [False, True], ids=["pending", "active"])
@pytest.mark.parametrize("seed", [OTHER_SEED, None], ids=["another signer", "unsigned"])
def test_another_relay_is_refused(pair: ProvisioningPair, seed: bytes | None, activated: bool) -> None:
    pair.provision()
    if activated:
        _activate(pair)
    held = (pair.enclave.active, pair.enclave.pending)
    outcome = pair.provision(relay_public_key=OTHER_KEY, signing_seed=seed)
    assert _code(outcome) is WireCode.ALREADY_PROVISIONED
    assert (pair.enclave.active, pair.enclave.pending) == held


def test_knowing_the_relay_s_key_is_not_being_the_relay(pair: ProvisioningPair) -> None:
    pair.provision()
    _activate(pair)
    assert _code(pair.provision(signing_seed=OTHER_SEED)) is WireCode.ALREADY_PROVISIONED


def test_the_adopted_key_needs_a_larger_epoch(pair: ProvisioningPair) -> None:
    pair.provision(epoch_ms=1000)
    _activate(pair)
    assert _code(pair.provision(epoch_ms=1000)) is WireCode.STALE_EPOCH
    assert _accepted(pair.provision(epoch_ms=1001))


def test_the_adoption_ends_with_the_assignment(pair: ProvisioningPair) -> None:
    pair.provision(epoch_ms=2**53 - 1)
    pair.enclave.handle_timers(pair.clock.advance(30.0))
    # Neither the stranger's key nor its absurd epoch is in the way of the next one, nor of itself.
    assert _accepted(pair.provision(signing_seed=OTHER_SEED, epoch_ms=5))
    pair.enclave.handle_timers(pair.clock.advance(30.0))
    assert _accepted(pair.provision(epoch_ms=5))


def test_an_unsigned_relay_comes_back_after_three_minutes_of_silence(make_pair: MakePair) -> None:
    last = -inf
    pair = make_pair(last_authenticated=lambda: last)
    assert _accepted(pair.provision(signing_seed=None))
    _activate(pair)
    activated = pair.clock.now
    assert _code(pair.provision(signing_seed=None)) is WireCode.ALREADY_PROVISIONED

    last = pair.clock.advance(100.0)  # a packet authenticated
    pair.clock.advance(178.0)  # a connection takes one more second
    assert pair.clock.now - activated > 180.0
    assert _code(pair.provision(signing_seed=None)) is WireCode.ALREADY_PROVISIONED
    assert _accepted(pair.provision(signing_seed=None))


def test_silence_lets_nobody_else_in(pair: ProvisioningPair) -> None:
    pair.provision(signing_seed=None)
    _activate(pair)
    pair.clock.advance(1e6)
    assert _code(pair.provision(signing_seed=None, relay_public_key=OTHER_KEY)) is WireCode.ALREADY_PROVISIONED


def test_an_unsigned_pending_assignment_waits_for_its_rollback(pair: ProvisioningPair) -> None:
    pair.provision(signing_seed=None)
    pair.clock.advance(20.0)
    assert _code(pair.provision(signing_seed=None)) is WireCode.ALREADY_PROVISIONED


# Who may ask: a pin.


@pytest.fixture
def pinned(make_pair: MakePair) -> ProvisioningPair:
    return make_pair(relay_pin=public_key_of(SIGNING_SEED))


def test_the_pin_s_owner_is_served_again_and_again(pinned: ProvisioningPair) -> None:
    for key in (RELAY_PUBLIC_KEY, OTHER_KEY, RELAY_PUBLIC_KEY):
        assert _accepted(pinned.provision(relay_public_key=key))
        _activate(pinned, key)


def test_with_a_pin_an_unsigned_request_is_refused(pinned: ProvisioningPair) -> None:
    assert _code(pinned.provision(signing_seed=None)) is WireCode.AUTH_REQUIRED


def test_with_a_pin_another_signer_is_refused(pinned: ProvisioningPair) -> None:
    assert _code(pinned.provision(signing_seed=OTHER_SEED)) is WireCode.AUTH_FAILED


def test_with_a_pin_silence_does_not_replace_the_signature(pinned: ProvisioningPair) -> None:
    pinned.provision()
    _activate(pinned)
    pinned.clock.advance(1e6)
    assert _code(pinned.provision(signing_seed=None)) is WireCode.AUTH_REQUIRED


def test_with_a_pin_the_epoch_only_grows_even_over_a_rollback(pinned: ProvisioningPair) -> None:
    assert _accepted(pinned.provision(epoch_ms=1000))
    pinned.enclave.handle_timers(pinned.clock.advance(30.0))
    assert _state(pinned) is LinkState.UNPROVISIONED
    assert _code(pinned.provision(epoch_ms=1000)) is WireCode.STALE_EPOCH
    assert _code(pinned.provision(epoch_ms=999)) is WireCode.STALE_EPOCH
    assert _accepted(pinned.provision(epoch_ms=1001))


def test_a_refused_request_does_not_use_up_its_epoch(pinned: ProvisioningPair) -> None:
    connection = pinned.connect(epoch_ms=1000)
    connection.relay._config = replace(TUNNEL_CONFIG, search=("-",))
    assert _code(connection.run()) is WireCode.CONFIG_REJECTED
    assert _accepted(pinned.provision(epoch_ms=1000))


@pytest.mark.parametrize("pin", [b"", bytes(32)], ids=["empty", "zero"])
def test_a_pin_that_pins_nothing_does_not_start(pin: bytes) -> None:
    with pytest.raises(ConfigurationError):
        EnclaveProvisioning(random=SeededRandom("pin"), relay_pin=pin)
