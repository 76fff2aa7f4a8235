"""The enclave over many connections: who may provision it, what is pending, what is undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

import pytest

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import (
    MAX_WAITING,
    AttestationNeeded,
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
    StrangersTurnedAway,
    public_key_of,
)
from wgvsock.provisioning.errors import BadFrameError, BusyError, ConnectionLostError, ExchangeError, WireCode
from wgvsock.provisioning.messages import Error, decode_hello, decode_result
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


def test_several_wait_for_their_request_and_the_relay_is_served_among_them(pair: ProvisioningPair) -> None:
    waiting = [pair.connect() for _ in range(3)]
    assert _accepted(pair.provision())
    assert not any(connection.exchange.closed for connection in waiting[1:])


def test_a_newcomer_evicts_the_oldest_that_has_said_nothing() -> None:
    enclave = EnclaveProvisioning(random=SeededRandom("listener"))
    exchanges = [enclave.accept(0.0) for _ in range(MAX_WAITING)]
    assert not any(exchange.closed for exchange in exchanges)
    exchanges[0].data_to_send()
    enclave.accept(0.0)
    assert [exchange.closed for exchange in exchanges] == [True] + [False] * (MAX_WAITING - 1)
    error = decode_hello(exchanges[0].data_to_send()[4:])
    assert isinstance(error, Error)
    assert error.code == WireCode.BUSY


def test_thirteen_a_second_that_hold_their_place_keep_nobody_out(make_pair: MakePair) -> None:
    """Each holds until its deadline. Meanwhile a pinned relay is served, every second for a minute."""
    pair = make_pair(relay_pin=public_key_of(SIGNING_SEED))
    for _ in range(60):
        for _ in range(13):
            pair.enclave.accept(pair.clock.advance(1 / 13))
        assert _accepted(pair.provision())
        _activate(pair)


def test_a_flood_of_connects_and_forged_requests_keeps_nobody_out(make_pair: MakePair) -> None:
    """Between the relay's HELLO and its REQUEST, as many connect and forge as there are places minus one."""
    pair = make_pair(relay_pin=public_key_of(SIGNING_SEED))
    for _ in range(MAX_WAITING):
        pair.enclave.accept(pair.clock.now)
    relay = pair.connect()
    relay.carry_to_relay()
    for number in range(MAX_WAITING - 1):
        forger = pair.connect(signing_seed=OTHER_SEED) if number < 20 else None
        if forger is None:
            pair.enclave.accept(pair.clock.now)
        else:
            pair.clock.now -= 1.0  # which `connect` has advanced
            assert _code(forger.run()) is WireCode.AUTH_FAILED
    assert _accepted(relay.run())


def test_of_those_that_prove_to_be_the_relay_one_is_at_work(pair: ProvisioningPair) -> None:
    first, second = pair.connect(), pair.connect()
    pair.attests = False
    first.carry_to_relay()
    first.carry_to_enclave()
    assert first.exchange.proved
    assert _code(second.run()) is WireCode.BUSY
    assert not second.exchange.proved
    first.exchange.receive_eof()
    pair.drain()
    pair.attests = True
    assert _accepted(pair.provision())


def test_nobody_begins_before_the_shell_has_done_with_the_last_one(pair: ProvisioningPair) -> None:
    """The security module hangs, and the shell with it. What waits for it does not grow, whoever connects."""
    pair.applies = pair.attests = False
    relay, strangers = pair.connect(), 0
    relay.carry_to_relay()
    relay.carry_to_enclave()
    relay.exchange.configuration_applied(b"k" * 32, pair.clock.now)
    relay.exchange.handle_timers(pair.clock.advance(5.0))
    assert relay.exchange.closed
    for _ in range(50):
        again = pair.relay(epoch_ms=2**40)
        exchange = pair.enclave.accept(pair.clock.advance(0.1))
        again.receive_data(exchange.data_to_send(), pair.clock.now)
        exchange.receive_data(again.data_to_send(), pair.clock.now)
        again.receive_data(exchange.data_to_send(), pair.clock.now)
        assert _code(again.next_event()) is WireCode.BUSY
        for _ in range(20):
            pair.enclave.accept(pair.clock.now).receive_eof()
            strangers += 1
    pair.enclave.handle_timers(pair.clock.now)
    waiting = pair.drain()
    assert [type(event) for event in waiting] == [
        AttestationNeeded,
        ConfigurationRolledBack,
        ExchangeEnded,
        StrangersTurnedAway,
    ]
    assert isinstance(waiting[-1], StrangersTurnedAway)
    assert {type(error): count for error, count in waiting[-1].ends} == {BusyError: 50, ConnectionLostError: strangers}


def test_an_overdue_exchange_ends(pair: ProvisioningPair) -> None:
    idle = pair.connect()
    pair.clock.advance(3.0)
    assert _accepted(pair.provision())
    assert idle.exchange.closed


def test_the_end_of_the_relay_s_exchange_is_reported(pair: ProvisioningPair) -> None:
    connection = pair.connect()
    connection.run()
    [ended] = [event for event in pair.events if isinstance(event, ExchangeEnded)]
    assert ended == ExchangeEnded(connection.exchange, None)


def test_strangers_are_counted_and_reported_once_a_second() -> None:
    enclave = EnclaveProvisioning(random=SeededRandom("strangers"))
    assert enclave.next_deadline() is None
    enclave.accept(10.0).receive_eof()
    assert not enclave.has_event
    assert enclave.next_deadline() == -inf  # the first one at once
    enclave.handle_timers(10.0)
    assert enclave.has_event
    assert enclave.next_deadline() is None
    first = enclave.next_event()
    assert isinstance(first, StrangersTurnedAway)
    [(error, count)] = first.ends
    assert (type(error), count) == (ConnectionLostError, 1)
    assert not enclave.has_event

    for _ in range(100):
        enclave.accept(10.1).receive_eof()
        enclave.accept(10.1).receive_data(b"\xff" * 4, 10.1)
    assert enclave.next_deadline() == 11.0
    enclave.handle_timers(10.9)
    assert enclave.next_event() is None
    enclave.handle_timers(11.0)
    second = enclave.next_event()
    assert isinstance(second, StrangersTurnedAway)
    assert {type(error): count for error, count in second.ends} == {ConnectionLostError: 100, BadFrameError: 100}
    assert enclave.next_event() is None


def test_the_shell_hears_which_exchanges_changed(pair: ProvisioningPair) -> None:
    enclave = pair.enclave
    exchange = enclave.accept(0.0)
    assert enclave.take_changed() == [exchange]
    assert enclave.take_changed() == []
    exchange.receive_data(b"\0", 0.0)
    assert enclave.take_changed() == []
    exchange.receive_eof()
    assert enclave.take_changed() == [exchange]
    connection = pair.connect()
    connection.run()
    assert connection.exchange in enclave.take_changed()


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
    connection = pair.connect(expectations=replace(pair.expectations, instance_id="i-0fedcba9876543210"))
    connection.to_enclave = lambda data: data if len(data) > 40 else b""  # RESULT is on its way
    connection.run()
    _activate(pair)
    connection.exchange.receive_data(connection.sent_by_relay[1], pair.clock.now)
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
    assert _accepted(pair.provision(epoch_ms=1000))  # nobody has proved an epoch yet
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


@pytest.mark.parametrize("seed", [OTHER_SEED, None], ids=["another signer", "unsigned"])
def test_silence_alone_lets_another_relay_in(make_pair: MakePair, seed: bytes | None) -> None:
    alive = True
    pair = make_pair(relay_connected=lambda: alive)
    assert _accepted(pair.provision())
    _activate(pair)
    pair.clock.advance(180.0)
    stranger = {"signing_seed": seed, "relay_public_key": OTHER_KEY}
    assert _code(pair.provision(**stranger)) is WireCode.ALREADY_PROVISIONED  # idle, but there

    alive = False
    assert _accepted(pair.provision(**stranger))
    assert _state(pair) is LinkState.REPLACING
    _activate(pair, OTHER_KEY)
    assert _code(pair.provision()) is WireCode.ALREADY_PROVISIONED


def test_a_stream_that_has_just_ended_is_no_silence(make_pair: MakePair) -> None:
    last = inf
    pair = make_pair(relay_connected=lambda: False, last_authenticated=lambda: last)
    pair.provision()
    _activate(pair)
    last = pair.clock.advance(1000.0)
    pair.clock.advance(178.0)
    refused = pair.provision(relay_public_key=OTHER_KEY, signing_seed=OTHER_SEED)
    assert _code(refused) is WireCode.ALREADY_PROVISIONED
    assert _accepted(pair.provision(relay_public_key=OTHER_KEY, signing_seed=OTHER_SEED))


def test_an_unsigned_pending_assignment_waits_for_its_rollback(pair: ProvisioningPair) -> None:
    pair.provision(signing_seed=None)
    pair.clock.advance(20.0)
    assert _code(pair.provision(signing_seed=None)) is WireCode.ALREADY_PROVISIONED


# Two relays with one signing key.


@pytest.fixture(params=["adopted", "pinned"])
def shared(make_pair: MakePair, request: pytest.FixtureRequest) -> ProvisioningPair:
    """An enclave that serves the relay started at 1000."""
    pair = make_pair(**({"relay_pin": public_key_of(SIGNING_SEED)} if request.param == "pinned" else {}))
    assert _accepted(pair.provision(incarnation=1000))
    _activate(pair)
    return pair


def test_the_younger_is_served_and_the_older_is_told(shared: ProvisioningPair) -> None:
    assert _accepted(shared.provision(incarnation=2000, relay_public_key=OTHER_KEY))
    _activate(shared, OTHER_KEY)
    assert shared.enclave.active is not None
    assert shared.enclave.active.incarnation == 2000
    held = shared.enclave.active
    assert _code(shared.provision(incarnation=1000)) is WireCode.SUPERSEDED
    assert _code(shared.provision(incarnation=1999, epoch_ms=2**53 - 1)) is WireCode.SUPERSEDED
    assert shared.enclave.active is held
    assert _accepted(shared.provision(incarnation=2000))  # and goes on being served


def test_the_same_process_is_served_again(shared: ProvisioningPair) -> None:
    assert _accepted(shared.provision(incarnation=1000, relay_public_key=OTHER_KEY))
    assert shared.enclave.pending is not None
    assert shared.enclave.active is not None
    assert shared.enclave.pending.is_of(shared.enclave.active)


def test_a_younger_one_that_never_proves_itself_is_in_nobody_s_way(shared: ProvisioningPair) -> None:
    assert _accepted(shared.provision(incarnation=2000, relay_public_key=OTHER_KEY))
    assert _accepted(shared.provision(incarnation=1000))


def test_the_older_comes_back_after_silence_whatever_the_clocks_say(shared: ProvisioningPair) -> None:
    _accepted(shared.provision(incarnation=2000, relay_public_key=OTHER_KEY))
    _activate(shared, OTHER_KEY)
    older = {"incarnation": 1000, "epoch_ms": 1}
    shared.clock.advance(178.0)  # a connection takes one more second
    assert _code(shared.provision(**older)) is WireCode.SUPERSEDED
    assert _accepted(shared.provision(**older))
    _activate(shared)
    assert shared.enclave.active is not None
    assert shared.enclave.active.incarnation == 1000


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


def test_with_a_pin_the_epoch_only_grows(pinned: ProvisioningPair) -> None:
    assert _accepted(pinned.provision(epoch_ms=1000))
    _activate(pinned)
    assert _code(pinned.provision(epoch_ms=1000)) is WireCode.STALE_EPOCH
    assert _code(pinned.provision(epoch_ms=999)) is WireCode.STALE_EPOCH
    assert _accepted(pinned.provision(epoch_ms=1001))


FAR_AHEAD = 2**53 - 1


def test_a_clock_far_ahead_that_the_relay_itself_refuses_burns_no_epoch(pinned: ProvisioningPair) -> None:
    """A relay whose clock is far in the future finds every document stale."""
    refused = pinned.connect(epoch_ms=FAR_AHEAD, utc_now=lambda: datetime(2099, 1, 1, tzinfo=UTC))
    assert isinstance(refused.run(), ProvisioningFailed)
    assert decode_result(refused.opened_by_enclave[-1]).code == WireCode.ATTESTATION_REJECTED
    assert _accepted(pinned.provision())


def test_a_clock_far_ahead_whose_relay_never_comes_burns_no_epoch(pinned: ProvisioningPair) -> None:
    assert _accepted(pinned.provision(epoch_ms=FAR_AHEAD))
    assert _accepted(pinned.provision(epoch_ms=1000))  # a pending one is no bar
    _activate(pinned)
    assert _accepted(pinned.provision(epoch_ms=FAR_AHEAD))
    pinned.enclave.handle_timers(pinned.clock.advance(30.0))
    pinned.drain()
    assert _accepted(pinned.provision(epoch_ms=1001))


def test_a_clock_far_ahead_that_breaks_off_burns_no_epoch(pinned: ProvisioningPair) -> None:
    connection = pinned.connect(epoch_ms=FAR_AHEAD)
    connection.carry_to_relay()
    connection.carry_to_enclave()
    connection.exchange.receive_eof()
    pinned.drain()
    assert _accepted(pinned.provision())


def test_a_refused_request_does_not_use_up_its_epoch(pinned: ProvisioningPair) -> None:
    connection = pinned.connect(epoch_ms=1000)
    connection.relay._config = replace(TUNNEL_CONFIG, search=("-",))
    assert _code(connection.run()) is WireCode.CONFIG_REJECTED
    assert _accepted(pinned.provision(epoch_ms=1000))


@pytest.mark.parametrize("pin", [b"", bytes(32)], ids=["empty", "zero"])
def test_a_pin_that_pins_nothing_does_not_start(pin: bytes) -> None:
    with pytest.raises(ConfigurationError):
        EnclaveProvisioning(random=SeededRandom("pin"), relay_pin=pin)
