from __future__ import annotations

from typing import Any

import pytest

from lab.schedule.faults import TRAITS, Fault, Flow, Traits
from lab.schedule.model import GONE, Account, Request, Seen, allows, complaints, may_cut, see

READY = Seen(answers=True, ready=True)


def unready(*failing: str) -> Seen:
    return Seen(answers=True, failing=frozenset(failing))


def account(*looks: tuple[float, Seen], right: float | None = 5.0, **more: Any) -> Account:
    """The fault strikes at 0 and ends at 1."""
    return Account(struck=0.0, mended=1.0, right=right, looks=looks, **more)


def only(fault: Fault) -> list[Traits]:
    return [TRAITS[fault]]


def test_what_a_status_says() -> None:
    status = {"ready": False, "conditions": {"attested": True, "rules": False, "uplink": False}}
    assert see(status) == unready("rules", "uplink")
    assert see(None) == GONE
    assert see({"ready": True, "conditions": {"rules": True}, "nat": {"contested": ["rules"]}}).contested


def test_what_a_status_says_of_one_enclave() -> None:
    status = {"ready": False, "enclaves": [{"name": "a", "ready": True}, {"name": "b", "ready": False}]}
    assert see(status, "a") == READY
    assert see(status, "b") == unready()
    assert see(status, "c") == unready()  # it is not there: not ready, and without a reason


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (GONE, "gone"),
        (READY, "ready"),
        (unready("rules", "attested"), "unready(attested,rules)"),
        (unready(), "unready(?)"),
        (Seen(answers=True, ready=True, contested=True), "contested ready"),
    ],
)
def test_in_words(seen: Seen, text: str) -> None:
    assert str(seen) == text


@pytest.mark.parametrize(
    ("fault", "seen", "allowed"),
    [
        (Fault.RELAY_KILLED, GONE, True),
        (Fault.STREAM_CUT, GONE, False),
        (Fault.STREAM_CUT, READY, True),
        (Fault.STREAM_CUT, unready("handshake"), True),
        (Fault.STREAM_CUT, unready("uplink"), False),
        (Fault.STREAM_CUT, unready(), False),
        (Fault.REATTESTED, unready("attested"), False),
        (Fault.ROUTE_GONE, unready("uplink"), True),
        (Fault.RULES_FLUSHED, Seen(answers=True, ready=True, failing=frozenset({"rules"})), False),
    ],
)
def test_a_relay_may_be_as_its_fault_explains(fault: Fault, seen: Seen, allowed: bool) -> None:
    assert allows([TRAITS[fault]], seen) is allowed


def test_two_faults_explain_what_either_does() -> None:
    rows = [TRAITS[Fault.STREAM_STALLED], TRAITS[Fault.ROUTE_GONE]]
    assert allows(rows, unready("handshake", "uplink"))
    assert not allows(rows[:1], unready("handshake", "uplink"))
    assert may_cut([TRAITS[Fault.AGENT_KILLED], TRAITS[Fault.ROUTE_GONE]]) == {Flow.PUBLISHED_TCP}


def test_all_is_well() -> None:
    assert complaints(only(Fault.STREAM_CUT), account((0.1, unready("handshake")), (2.0, READY))) == []


def test_never_right_again() -> None:
    (complaint,) = complaints(only(Fault.STREAM_CUT), account((0.1, unready("handshake")), right=None))
    assert "not right again" in complaint
    assert "unready(handshake)" in complaint
    assert "gone" in complaints(only(Fault.RELAY_KILLED), account(right=None))[0]


def test_a_state_that_nothing_explains() -> None:
    looks = ((0.1, unready("uplink")), (0.2, unready("uplink")), (2.0, READY))
    assert len(complaints(only(Fault.STREAM_CUT), account(*looks))) == 1


@pytest.mark.parametrize("when", [0.5, 1.5])
def test_what_has_to_be_noticed_is_noticed_before_it_ends(when: float) -> None:
    found = complaints(only(Fault.ROUTE_GONE), account((0.1, READY), (when, unready("uplink")), (2.0, READY)))
    assert bool(found) is (when > 1.0)


@pytest.mark.parametrize(("flow", "wrong"), [(Flow.PUBLISHED_TCP, False), (Flow.EGRESS_TCP, True)])
def test_who_may_be_cut(flow: Flow, wrong: bool) -> None:
    found = complaints(only(Fault.AGENT_KILLED), account((2.0, READY), cut=frozenset({flow})))
    assert bool(found) is wrong


def let_down(begin: float, end: float, fault: Fault, *looks: tuple[float, Seen]) -> list[str]:
    return complaints(only(fault), account(*looks, (4.0, READY), failed=(Request(begin, end, "a client"),)))


def test_nobody_is_let_down_where_a_fault_costs_nothing() -> None:
    assert let_down(0.2, 0.5, Fault.REATTESTED)
    assert let_down(0.2, 0.5, Fault.PORTS_RELOADED)
    assert not let_down(0.2, 0.5, Fault.STREAM_CUT)


def test_nobody_is_let_down_before_and_after() -> None:
    assert "outside" in let_down(-3.0, -1.0, Fault.STREAM_CUT)[0]
    assert "outside" in let_down(5.5, 6.0, Fault.STREAM_CUT)[0]
    assert not let_down(-1.0, 0.5, Fault.STREAM_CUT)  # it fell into the fault


def test_who_says_ready_lets_nobody_down_after_the_time_to_notice() -> None:
    assert "said ready" in let_down(3.1, 3.5, Fault.FORWARDING_OFF, (1.2, READY), (3.4, READY))[0]
    assert not let_down(2.9, 3.5, Fault.FORWARDING_OFF, (1.2, READY))
    assert not let_down(3.1, 3.5, Fault.FORWARDING_OFF, (1.2, READY), (3.4, unready("forwarding")))
    assert not let_down(3.1, 3.5, Fault.FORWARDING_OFF, (1.2, Seen(answers=True, ready=True, contested=True)))
    assert not let_down(3.1, 3.5, Fault.STREAM_STALLED, (1.2, READY), (3.4, READY))  # nobody can know


@pytest.mark.parametrize("fault", [Fault.STREAM_CUT, Fault.RULES_FLUSHED])
def test_no_fault_lets_a_packet_out_in_the_clear(fault: Fault) -> None:
    looks = ((2.0, READY),)
    assert complaints(only(fault), account(*looks, bare=(0.1,)))
    assert not complaints(only(fault), account(*looks))


def test_a_neighbour_of_the_enclave_that_is_struck_notices_nothing() -> None:
    assert complaints([], account((2.0, READY))) == []
    assert complaints([], account((0.5, unready("handshake")), (2.0, READY)))
    assert complaints([], account((0.5, GONE), (2.0, READY)))
    assert complaints([], account((2.0, READY), cut=frozenset({Flow.PUBLISHED_TCP})))
    assert complaints([], account((2.0, READY), failed=(Request(0.5, 0.6, "a client"),)))
    assert complaints([], account((2.0, READY), bare=(0.5,)))
