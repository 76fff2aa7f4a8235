"""Which flows contradict the rules, and which do not concern the relay."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.system.tracked import CLIENT, DNS, ENCLAVE, OTHER_POD, POD, UDP_CLIENT, WANTED, WEB
from wgvsock.system.flows import ASSURED, DESTINATION_TRANSLATED, SOURCE_TRANSLATED, Flow, WantedFlows, stale

TCP_CLIENT = Flow(6, CLIENT, 4000, POD, 80, POD, 80, CLIENT, 0)
LED = Flow(17, CLIENT, 4000, POD, 53, ENCLAVE, 5353, CLIENT, DESTINATION_TRANSLATED | ASSURED)
HIDDEN = Flow(17, ENCLAVE, 123, CLIENT, 123, CLIENT, 123, POD, SOURCE_TRANSLATED)


@pytest.mark.parametrize("seen", [UDP_CLIENT, UDP_CLIENT._replace(status=ASSURED), TCP_CLIENT])
def test_who_sent_before_the_port_was_published_is_stale(seen: Flow) -> None:
    assert list(stale([seen], WANTED)) == [("early", seen)]


NOT_EARLY = {
    "led already": LED,
    "another port": UDP_CLIENT._replace(destination_port=54),
    "another protocol": UDP_CLIENT._replace(protocol=6),
    "no ports": UDP_CLIENT._replace(protocol=47),
    "another address of this machine": UDP_CLIENT._replace(destination=OTHER_POD, reply_source=OTHER_POD),
    "another machine": UDP_CLIENT._replace(destination=CLIENT, reply_source=CLIENT),
    "this machine's own": UDP_CLIENT._replace(source=OTHER_POD),
    "a family that is not published": UDP_CLIENT._replace(destination=ip_address("fd20::10")),
    "led elsewhere by another program": LED._replace(reply_source=OTHER_POD),
    "a connection with a program here": TCP_CLIENT._replace(status=ASSURED),
}


@pytest.mark.parametrize("seen", NOT_EARLY.values(), ids=NOT_EARLY.keys())
def test_other_flows_are_not_early(seen: Flow) -> None:
    assert list(stale([seen], WANTED)) == []


def test_a_withdrawn_port_s_flows_are_stale() -> None:
    wanted = replace(WANTED, published=frozenset({WEB}), withdrawn=frozenset({DNS}))
    assert list(stale([LED], wanted)) == [("withdrawn", LED)]
    vanished = replace(wanted, local=frozenset(), gone=frozenset({POD}))
    assert list(stale([LED], vanished)) == [("withdrawn", LED)]


NOT_WITHDRAWN = {
    "not led": UDP_CLIENT,
    "another end": LED._replace(reply_source=OTHER_POD),
    "another port of the enclave": LED._replace(reply_source_port=53),
    "from another port": LED._replace(destination_port=54),
    "from an address that is not this machine's": LED._replace(destination=CLIENT),
    "another protocol": LED._replace(protocol=6),
}


@pytest.mark.parametrize("seen", NOT_WITHDRAWN.values(), ids=NOT_WITHDRAWN.keys())
def test_other_flows_are_not_withdrawn(seen: Flow) -> None:
    wanted = replace(WANTED, published=frozenset(), withdrawn=frozenset({DNS}))
    assert list(stale([seen], wanted)) == []


def test_a_flow_behind_an_address_that_is_gone_is_stale() -> None:
    wanted = replace(WANTED, local=frozenset({OTHER_POD}), gone=frozenset({POD}))
    echo = HIDDEN._replace(protocol=1)
    others = [
        HIDDEN._replace(source=OTHER_POD),
        HIDDEN._replace(status=0),
        HIDDEN._replace(reply_destination=OTHER_POD),
    ]
    assert list(stale([HIDDEN, echo, *others], wanted)) == [("address_gone", HIDDEN), ("address_gone", echo)]
    assert list(stale([HIDDEN], WANTED)) == []


def test_every_flow_of_an_enclave_that_is_served_no_more_is_stale() -> None:
    wanted = WantedFlows(ended=frozenset({ENCLAVE}))
    inside = HIDDEN._replace(status=0)
    assert list(stale([LED, HIDDEN, inside, UDP_CLIENT], wanted)) == [("ended", LED), ("ended", HIDDEN)]
