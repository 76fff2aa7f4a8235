from __future__ import annotations

import pytest

from wgvsock.errors import LocalProtocolError
from wgvsock.testing import DevicePair
from wgvsock.wireguard.keypair import Keypair, Keypairs
from wgvsock.wireguard.noise import TransportKeys
from wgvsock.wireguard.timers import NEVER, STANDARD_TIMINGS, Timings


def make(*, initiator: bool, index: int = 0, timings: Timings = STANDARD_TIMINGS, now: float = 100.0) -> Keypair:
    return Keypair(
        DevicePair().alices_peer,
        TransportKeys(bytearray(b"\1" * 32), bytearray(b"\2" * 32)),
        initiator=initiator,
        local_index=index,
        remote_index=index + 1,
        handshake_started_at=now,
        timings=timings,
        now=now,
    )


class Retired(list[Keypair]):
    """Accepts what `Keypairs` retires, once each."""

    def __call__(self, keypair: Keypair) -> None:
        assert keypair not in self
        self.append(keypair)


def test_the_keys_are_wiped_once_they_are_taken_over() -> None:
    keys = TransportKeys(bytearray(b"\1" * 32), bytearray(b"\2" * 32))
    Keypair(
        DevicePair().alices_peer,
        keys,
        initiator=True,
        local_index=1,
        remote_index=2,
        handshake_started_at=0.0,
        timings=STANDARD_TIMINGS,
        now=0.0,
    )
    assert not any(keys.sending + keys.receiving)


def test_sending_and_receiving_keys_differ() -> None:
    keypair = make(initiator=True)
    buffer = bytearray(16)
    keypair.encrypt_into(bytes(12), b"", None, buffer)
    mirrored = Keypair(
        DevicePair().alices_peer,
        TransportKeys(bytearray(b"\2" * 32), bytearray(b"\1" * 32)),
        initiator=False,
        local_index=1,
        remote_index=2,
        handshake_started_at=0.0,
        timings=STANDARD_TIMINGS,
        now=0.0,
    )
    assert mirrored.decrypt_into(bytes(12), buffer, None, bytearray()) == 0


def test_only_the_initiator_renews() -> None:
    initiator, responder = make(initiator=True), make(initiator=False)
    assert initiator.rekey_at == 100 + 120
    assert initiator.last_minute_at == 100 + 180 - 10 - 5
    assert responder.rekey_at == responder.last_minute_at == NEVER
    assert initiator.reject_at == responder.reject_at == 100 + 180


@pytest.mark.parametrize("initiator", [True, False])
def test_limits_of_sending(*, initiator: bool) -> None:
    keypair = make(initiator=initiator, timings=Timings(reject_after_messages=10))
    assert keypair.can_send(279.9)
    assert not keypair.can_send(280.0)
    keypair.sending_counter = 9
    assert keypair.can_send(100.0)
    keypair.sending_counter = 10
    assert not keypair.can_send(100.0)


def test_a_wiped_keypair_has_no_cipher() -> None:
    keypair = make(initiator=True)
    keypair.wipe()
    for cipher in (keypair.encrypt_into, keypair.decrypt_into):
        with pytest.raises(LocalProtocolError):
            cipher(bytes(12), b"", None, bytearray(16))


def test_an_initiator_s_keypair_is_current_at_once() -> None:
    retired = Retired()
    keypairs = Keypairs(retired)
    a, b, c = (make(initiator=True, index=i, now=10.0 * i) for i in range(3))
    keypairs.install(a)
    assert list(keypairs) == [a]
    keypairs.install(b)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (b, a, None)
    keypairs.install(c)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (c, b, None)
    assert retired == [a]


def test_a_responder_s_keypair_waits_to_be_confirmed() -> None:
    retired = Retired()
    keypairs = Keypairs(retired)
    a, b, c = (make(initiator=False, index=i, now=10.0 * i) for i in range(3))
    keypairs.install(a)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (None, None, a)
    keypairs.confirm()
    assert (keypairs.current, keypairs.previous, keypairs.next) == (a, None, None)
    keypairs.install(b)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (a, None, b)
    keypairs.confirm()
    assert (keypairs.current, keypairs.previous, keypairs.next) == (b, a, None)
    keypairs.install(c)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (b, None, c)
    assert retired == [a]


def test_an_unconfirmed_keypair_gives_way_to_the_next() -> None:
    retired = Retired()
    keypairs = Keypairs(retired)
    a, b = make(initiator=False), make(initiator=False)
    keypairs.install(a)
    keypairs.install(b)
    assert list(keypairs) == [b]
    assert retired == [a]


def test_crossing_handshakes_keep_both_keypairs() -> None:
    retired = Retired()
    keypairs = Keypairs(retired)
    oldest, old = make(initiator=True, now=0.0), make(initiator=True, now=50.0)
    answered, started = make(initiator=False), make(initiator=True)
    for keypair in (oldest, old, answered, started):
        keypairs.install(keypair)
    assert (keypairs.current, keypairs.previous, keypairs.older, keypairs.next) == (started, answered, old, None)
    assert retired == [oldest]
    assert list(keypairs) == [started, answered, old]
    keypairs.install(make(initiator=True, now=200.0))
    assert (keypairs.previous, keypairs.older) == (started, None), "the crossing is over"
    assert retired == [oldest, answered, old]


def test_a_keypair_that_comes_while_the_current_one_is_new_pushes_no_other_out() -> None:
    """The response came first, then the remote's own initiation: it has not seen the current one yet."""
    retired = Retired()
    keypairs = Keypairs(retired)
    old, started, answered = make(initiator=True, now=50.0), make(initiator=True), make(initiator=False, now=101.0)
    for keypair in (old, started, answered):
        keypairs.install(keypair)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (started, old, answered)
    keypairs.confirm()
    assert (keypairs.current, keypairs.previous, keypairs.older) == (answered, started, old)
    assert retired == []


def test_an_heir_receives_and_does_not_send() -> None:
    retired = Retired()
    keypairs, heir = Keypairs(retired), Keypairs(retired)
    a, b, c = make(initiator=True), make(initiator=True), make(initiator=False)
    for keypair in (a, b):
        keypairs.install(keypair)
    keypairs.hand_over(heir)
    assert (heir.current, heir.previous, heir.next) == (None, b, None)
    assert list(keypairs) == [a]
    heir.install(c)
    heir.hand_over(keypairs)
    assert (keypairs.current, keypairs.previous, keypairs.next) == (None, None, c)


def test_clear_retires_all() -> None:
    retired = Retired()
    keypairs = Keypairs(retired)
    a, b, c = make(initiator=True), make(initiator=True, now=110.0), make(initiator=False, now=120.0)
    for keypair in (a, b, c):
        keypairs.install(keypair)
    keypairs.clear()
    assert list(keypairs) == []
    assert retired == [a, b, c]
