"""Every state of a device towards its peer x every input: what is answered, what is counted, what follows.

The device under test is Bob. A state is reached by real messages. An input is a real message of Alice's, made at the
moment of the state, or a forged or stale one. The table below is the complete specification.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import pytest

from wgvsock.testing import DevicePair
from wgvsock.testing.pair import ALICE, BOB, drain_events, drops, ipv4_packet
from wgvsock.wireguard.events import DropReason, HandshakeCompleted
from wgvsock.wireguard.keypair import Keypair
from wgvsock.wireguard.messages import HandshakeInitiation, HandshakeResponse, TransportData, parse_message

FROM_BOB = ipv4_packet("10.0.0.2", "10.0.0.1", b"from bob")


Given = TypeVar("Given")


def present(given: Given | None) -> Given:
    """What the state left behind, from which an input is made."""
    if given is None:
        raise LookupError("this input does not exist in this state")
    return given


class Scene:
    """Bob in some state, and what Alice kept that she can send now."""

    def __init__(self) -> None:
        self.pair = DevicePair()
        self.pair.bobs_peer.set_endpoint(ALICE)
        self.initiation: bytes | None = None
        self.response: bytes | None = None
        self.keypair: Keypair | None = None
        """Alice's newest keypair with Bob that Bob may know."""

    # --- states ---

    def idle(self) -> None:
        """The initial state."""

    def initiated(self) -> None:
        """Bob's initiation is in transit."""
        self.pair.bobs_peer.initiate_handshake(self.pair.now)
        ((_, bobs_initiation),) = self.pair.bob.datagrams_to_send()
        self.pair.alice.receive_datagram(bobs_initiation, BOB, self.pair.now)
        ((_, self.response),) = self.pair.alice.datagrams_to_send()

    def responded(self) -> None:
        """Bob has answered. Alice has not used the session yet."""
        self.pair.alices_peer.initiate_handshake(self.pair.now)
        ((_, self.initiation),) = self.pair.alice.datagrams_to_send()
        self.pair.bob.receive_datagram(self.initiation, ALICE, self.pair.now)
        ((_, bobs_response),) = self.pair.bob.datagrams_to_send()
        self.pair.alice.receive_datagram(bobs_response, BOB, self.pair.now)
        self.pair.alice.datagrams_to_send()
        self.keypair = self.pair.alices_peer.keypairs.current

    def established(self) -> None:
        """A session that both sides have used."""
        self.responded()
        self.deliver(self.data())

    def rekeying(self) -> None:
        """A session, and Bob's next initiation is in transit."""
        self.established()
        self.pair.clock.advance(130.0)
        keypair = self.keypair
        self.initiated()
        self.keypair = keypair

    def expired(self) -> None:
        """A session that is past REJECT_AFTER_TIME."""
        self.established()
        self.pair.clock.advance(180.0)

    # --- inputs ---

    def new_initiation(self) -> bytes:
        self.pair.clock.advance(1.0)
        self.pair.alices_peer.retry_handshake(self.pair.now)
        ((_, datagram),) = self.pair.alice.datagrams_to_send()
        return datagram

    def replayed_initiation(self) -> bytes:
        return present(self.initiation)

    def forged_initiation(self) -> bytes:
        message = HandshakeInitiation(1, bytes(range(32)), bytes(48), bytes(28))
        return self.pair.alices_peer.cookie.add_macs(message.pack(), self.pair.now)

    def awaited_response(self) -> bytes:
        return present(self.response)

    def forged_response(self) -> bytes:
        pending = self.pair.bobs_peer.handshake.pending
        message = HandshakeResponse(1, pending.local_index if pending else 2, bytes(range(32)), bytes(16))
        return self.pair.alices_peer.cookie.add_macs(message.pack(), self.pair.now)

    def data(self) -> bytes:
        return self._transport(ipv4_packet("10.0.0.1", "10.0.0.2", b"from alice"))

    def keepalive(self) -> bytes:
        return self._transport(b"")

    def data_for_nobody(self) -> bytes:
        return TransportData(0x11223344, 0, bytes(32)).pack()

    def _transport(self, packet: bytes) -> bytes:
        keypair = present(self.keypair)
        counter, keypair.sending_counter = keypair.sending_counter, keypair.sending_counter + 1
        room = memoryview(bytearray(packet + bytes(-len(packet) % 16) + bytes(32)))
        out = bytearray(len(room))
        struct.pack_into("<IIQ", out, 0, 4, keypair.remote_index, counter)
        keypair.encrypt_into(struct.pack("<4xQ", counter), room[:-32], None, memoryview(out)[16:])
        return bytes(out)

    # --- the outcome ---

    def deliver(self, datagram: bytes) -> None:
        self.pair.bob.receive_datagram(datagram, ALICE, self.pair.now)

    def bob_asks_to_send(self) -> None:
        self.pair.bob.send_packet(FROM_BOB, self.pair.now)


class Outcome(NamedTuple):
    """What Bob sends (first letters of the messages), counts, delivers, and whether a handshake completed."""

    sends: str = ""
    drops: DropReason | None = None
    delivers: int = 0
    completes: bool = False
    has_session: bool = False


SILENT = Outcome()
SESSION = Outcome(has_session=True)
REPLAYED = DropReason.REPLAYED_INITIATION
INVALID = DropReason.INVALID_HANDSHAKE
UNEXPECTED = DropReason.UNEXPECTED_RESPONSE
UNKNOWN = DropReason.UNKNOWN_INDEX
EXPIRED = DropReason.EXPIRED_KEYPAIR
CONFIRMED = Outcome(completes=True, has_session=True)

# I initiation, R response, D data, K keepalive. None: the input does not exist in that state.
TABLE: dict[str, dict[str, Outcome | None]] = {
    "idle": {
        "new_initiation": Outcome("R"),
        "replayed_initiation": None,
        "forged_initiation": Outcome(drops=INVALID),
        "awaited_response": None,
        "forged_response": Outcome(drops=UNEXPECTED),
        "data": None,
        "keepalive": None,
        "data_for_nobody": Outcome(drops=UNKNOWN),
        "bob_asks_to_send": Outcome("I"),
    },
    "initiated": {
        "new_initiation": Outcome("R"),
        "replayed_initiation": None,
        "forged_initiation": Outcome(drops=INVALID),
        "awaited_response": Outcome("K", completes=True, has_session=True),
        "forged_response": Outcome(drops=INVALID),
        "data": None,
        "keepalive": None,
        "data_for_nobody": Outcome(drops=UNKNOWN),
        "bob_asks_to_send": SILENT,
    },
    "responded": {
        "new_initiation": Outcome("R"),
        "replayed_initiation": Outcome(drops=REPLAYED),
        "forged_initiation": Outcome(drops=INVALID),
        "awaited_response": None,
        "forged_response": Outcome(drops=UNEXPECTED),
        "data": CONFIRMED._replace(delivers=1),
        "keepalive": CONFIRMED,
        "data_for_nobody": Outcome(drops=UNKNOWN),
        "bob_asks_to_send": Outcome("I"),
    },
    "established": {
        "new_initiation": SESSION._replace(sends="R"),
        "replayed_initiation": SESSION._replace(drops=REPLAYED),
        "forged_initiation": SESSION._replace(drops=INVALID),
        "awaited_response": None,
        "forged_response": SESSION._replace(drops=UNEXPECTED),
        "data": SESSION._replace(delivers=1),
        "keepalive": SESSION,
        "data_for_nobody": SESSION._replace(drops=UNKNOWN),
        "bob_asks_to_send": SESSION._replace(sends="D"),
    },
    "rekeying": {
        "new_initiation": SESSION._replace(sends="R"),
        "replayed_initiation": SESSION._replace(drops=REPLAYED),
        "forged_initiation": SESSION._replace(drops=INVALID),
        "awaited_response": CONFIRMED._replace(sends="K"),
        "forged_response": SESSION._replace(drops=INVALID),
        "data": SESSION._replace(delivers=1),
        "keepalive": SESSION,
        "data_for_nobody": SESSION._replace(drops=UNKNOWN),
        "bob_asks_to_send": SESSION._replace(sends="D"),
    },
    "expired": {
        "new_initiation": Outcome("R"),
        "replayed_initiation": Outcome(drops=REPLAYED),
        "forged_initiation": Outcome(drops=INVALID),
        "awaited_response": None,
        "forged_response": Outcome(drops=UNEXPECTED),
        "data": Outcome(drops=EXPIRED),
        "keepalive": Outcome(drops=EXPIRED),
        "data_for_nobody": Outcome(drops=UNKNOWN),
        "bob_asks_to_send": Outcome("I"),
    },
}

EXISTING = [(state, given, outcome) for state, row in TABLE.items() for given, outcome in row.items() if outcome]
ABSENT = [(state, given) for state, row in TABLE.items() for given, outcome in row.items() if outcome is None]


def letter(datagram: bytes) -> str:
    message = parse_message(datagram)
    if isinstance(message, TransportData):
        return "K" if message.is_keepalive else "D"
    return type(message).__name__.removeprefix("Handshake")[0]


@pytest.mark.parametrize(("state", "given", "expected"), EXISTING, ids=[f"{s}-{g}" for s, g, _ in EXISTING])
def test_state_by_input(state: str, given: str, expected: Outcome) -> None:
    scene = Scene()
    getattr(scene, state)()
    bob = scene.pair.bob
    bob.packets_to_deliver()
    drain_events(bob)
    before = drops(bob)

    action: Callable[[], bytes | None] = getattr(scene, given)
    datagram = action()
    if datagram is not None:
        scene.deliver(datagram)

    counted = [reason for reason, count in drops(bob).items() if count != before.get(reason, 0)]
    assert (
        Outcome(
            sends="".join(letter(datagram) for _, datagram in bob.datagrams_to_send()),
            drops=counted[0] if counted else None,
            delivers=len(bob.packets_to_deliver()),
            completes=any(isinstance(event, HandshakeCompleted) for event in drain_events(bob)),
            has_session=scene.pair.bobs_peer.has_session(scene.pair.now),
        )
        == expected
    )
    assert len(counted) <= 1


@pytest.mark.parametrize(("state", "given"), ABSENT)
def test_an_input_that_is_left_out_does_not_exist(state: str, given: str) -> None:
    scene = Scene()
    getattr(scene, state)()
    with pytest.raises(LookupError):
        getattr(scene, given)()


def test_the_table_has_no_gap() -> None:
    inputs = set(TABLE["idle"])
    assert all(set(row) == inputs for row in TABLE.values())


@pytest.mark.parametrize("state", TABLE)
def test_every_state_recovers(state: str) -> None:
    """In every state of Bob's, packets flow both ways after at most one retry."""
    scene = Scene()
    getattr(scene, state)()
    scene.pair.bob.packets_to_deliver()
    scene.pair.alice_sends()
    scene.pair.bob_sends()
    scene.pair.run(6.0)
    assert scene.pair.alice_sends() != []
    assert scene.pair.bob_sends() != []
