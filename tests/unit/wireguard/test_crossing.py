"""Handshakes that cross: every order in which two devices can act and hear of each other, without a lost packet.

The devices share only the wire and the time, which is stopped. So what each of them has done and heard, in that
order, is the whole state: orders that agree in it are tried once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pytest

from wgvsock.testing import DevicePair
from wgvsock.testing.pair import ALICE, BOB, drops, ipv4_packet
from wgvsock.wireguard import Device, Peer
from wgvsock.wireguard.events import DropReason

HANDSHAKE, DATA = "handshake", "data"


class Input(NamedTuple):
    """An action of a device, or a message that it hears."""

    device: str
    what: str
    """HANDSHAKE, DATA, or "hears"."""
    number: int = 0
    """Which of the messages that the other device has sent."""


@dataclass
class End:
    """One device."""

    device: Device
    peer: Peer
    address: str
    plan: list[str]
    heard: set[int] = field(default_factory=set)
    sent: list[bytes] = field(default_factory=list)
    packets: list[bytes] = field(default_factory=list)
    delivered: list[bytes] = field(default_factory=list)


class Scene:
    """Both devices after some inputs."""

    def __init__(self, plans: tuple[list[str], list[str]], *, session: bool) -> None:
        pair = DevicePair()
        pair.bobs_peer.set_endpoint(ALICE)
        if session:
            pair.handshake()
            assert pair.alice_sends()
            assert pair.bob_sends()
            pair.clock.advance(6.0)  # beyond REKEY_TIMEOUT
        self.now = pair.now
        self.ends = {
            ALICE: End(pair.alice, pair.alices_peer, "10.0.0.1", list(plans[0])),
            BOB: End(pair.bob, pair.bobs_peer, "10.0.0.2", list(plans[1])),
        }

    def other(self, name: str) -> End:
        return self.ends[BOB if name == ALICE else ALICE]

    def possible(self, order: Literal["kept", "any"]) -> list[Input]:
        inputs = []
        for name, end in self.ends.items():
            if end.plan:
                inputs.append(Input(name, end.plan[0]))
            waiting = [number for number in range(len(self.other(name).sent)) if number not in end.heard]
            inputs += [Input(name, "hears", number) for number in (waiting if order == "any" else waiting[:1])]
        return inputs

    def take(self, step: Input) -> None:
        end, other = self.ends[step.device], self.other(step.device)
        if step.what == HANDSHAKE:
            end.plan.pop(0)
            end.peer.initiate_handshake(self.now)
        elif step.what == DATA:
            end.plan.pop(0)
            packet = ipv4_packet(end.address, other.address, b"%d" % len(end.packets))
            end.packets.append(packet)
            end.device.send_packet(packet, self.now)
        else:
            end.heard.add(step.number)
            end.device.receive_datagram(other.sent[step.number], BOB if step.device == ALICE else ALICE, self.now)
            end.delivered += end.device.packets_to_deliver()
        end.sent += [datagram for _, datagram in end.device.datagrams_to_send()]

    def lost(self) -> list[tuple[str, bytes, dict[DropReason, int]]]:
        """Packets that did not arrive, or not once, with what the receiver has dropped."""
        return [
            (name, packet, drops(self.other(name).device))
            for name, end in self.ends.items()
            for packet in end.packets
            if self.other(name).delivered.count(packet) != 1
        ]


def every_order(
    plans: tuple[list[str], list[str]],
    *,
    session: bool,
    order: Literal["kept", "any"] = "kept",
    duplicate: bool = False,
) -> tuple[int, list[object]]:
    """Try them all. Returns the number of ends, and those at which a packet is lost.

    Args:
        plans: What Alice and what Bob does.
        session: Whether they have one, which is to be replaced.
        order: Whether messages of one device arrive as they were sent, or in any order.
        duplicate: Whether one message arrives twice.
    """
    seen: set[tuple[tuple[Input, ...], ...]] = set()
    unfinished: list[tuple[Input, ...]] = [()]
    ends, failures = 0, list[object]()
    while unfinished:
        steps = unfinished.pop()
        scene = Scene(plans, session=session)
        for step in steps:
            scene.take(step)
        following = scene.possible(order)
        if not following:
            ends += 1
            if lost := scene.lost():
                failures.append((steps, lost))
        if duplicate and not any(count > 1 for step, count in Counter(steps).items() if step.what == "hears"):
            following += [step for step in steps if step.what == "hears"]
        for step in following:
            state = tuple(tuple(one for one in (*steps, step) if one.device == name) for name in (ALICE, BOB))
            if state not in seen:
                seen.add(state)
                unfinished.append((*steps, step))
    return ends, failures


FIRST = [([DATA], []), ([DATA], [DATA]), ([DATA, DATA], [DATA])]
LATER = [
    ([HANDSHAKE, DATA], [DATA]),
    ([HANDSHAKE], [HANDSHAKE, DATA]),
    ([DATA, HANDSHAKE], [DATA, HANDSHAKE]),
]


@pytest.mark.parametrize("plans", FIRST, ids=str)
def test_first_handshakes(plans: tuple[list[str], list[str]]) -> None:
    ends, failures = every_order(plans, session=False)
    assert ends >= 1
    assert failures == []


@pytest.mark.parametrize("plans", [*LATER, ([HANDSHAKE, DATA], [HANDSHAKE, DATA])], ids=str)
def test_handshakes_beside_a_session(plans: tuple[list[str], list[str]]) -> None:
    """The remote uses the old session until it has a new one: what it sends meanwhile is accepted."""
    ends, failures = every_order(plans, session=True)
    assert ends > 5
    assert failures == []


@pytest.mark.parametrize("plans", FIRST[:2], ids=str)
def test_first_handshakes_over_a_network_that_reorders(plans: tuple[list[str], list[str]]) -> None:
    _, failures = every_order(plans, session=False, order="any")
    assert failures == []


@pytest.mark.parametrize("plans", LATER[:2], ids=str)
def test_handshakes_beside_a_session_over_a_network_that_reorders(plans: tuple[list[str], list[str]]) -> None:
    ends, failures = every_order(plans, session=True, order="any")
    assert ends > 40
    assert failures == []


@pytest.mark.parametrize("session", [False, True], ids=["first", "later"])
def test_one_message_arrives_twice(*, session: bool) -> None:
    """No packet is delivered twice either."""
    plans = LATER[1] if session else FIRST[1]
    ends, failures = every_order(plans, session=session, duplicate=True)
    assert ends > 30
    assert failures == []
