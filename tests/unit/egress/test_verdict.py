"""First packets are judged, with the table that all judges share. Nothing passes that is not named."""

from __future__ import annotations

import dataclasses
from functools import partial
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import egress_cases
from tests.egress_cases import CASES, MAPPED, SITE, Case
from wgvsock.egress.names import GRACE, MAX_TTL, MIN_TTL, Pin, Pins
from wgvsock.egress.policy import TCP, Packet, Policy
from wgvsock.egress.settings import PolicySettings, RuleSettings
from wgvsock.egress.verdict import Reason, Verdict, judge


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_table(case: Case) -> None:
    found = judge(egress_cases.policy(case.policy), egress_cases.pins(0), case.packet, SITE, 1)
    by = found.reason.value if found.rule is None else found.rule.key
    assert (found.allowed, by) == (case.allowed, case.by)


def test_the_table_has_every_reason() -> None:
    reasons = {reason.value for reason in Reason} - {Reason.RULE.value}
    assert reasons | {"allow 1", "deny 1"} <= {case.by for case in CASES}


def test_an_ipv4_mapped_address_is_closed() -> None:
    found = judge(Policy(), Pins(), Packet(MAPPED, TCP, 80), SITE, 0)
    assert found == Verdict(allowed=False, reason=Reason.CLOSED)


def test_a_rule_for_the_relay_opens_no_closed_address_of_it() -> None:
    """Such as 127.0.0.1 where route_localnet is on, or a cache for DNS on a link-local address."""
    policy = PolicySettings(allow=(RuleSettings(relay=True, protocol="any"),)).policy()
    site = dataclasses.replace(SITE, relay=SITE.relay | {ip_address("169.254.20.10")})
    assert not judge(policy, Pins(), Packet(ip_address("169.254.20.10"), TCP, 9253), site, 0).allowed
    assert judge(policy, Pins(), Packet(ip_address("10.0.1.5"), TCP, 9253), site, 0).allowed


def test_deny_wins_over_a_rule_for_the_relay() -> None:
    rules = RuleSettings(relay=True, protocol="any"), RuleSettings(relay=True, ports=(22,))
    policy = PolicySettings(allow=rules[:1], deny=rules[1:]).policy()
    found = judge(policy, Pins(), Packet(ip_address("10.0.1.5"), TCP, 22), SITE, 0)
    assert str(found) == 'denied by rule "deny tcp/udp 22 to the relay\'s machine"'


def test_a_verdict_reads_like_a_sentence() -> None:
    for reason in set(Reason) - {Reason.RULE}:
        assert str(Verdict(allowed=False, reason=reason)).startswith("denied ")
    allowed = judge(
        egress_cases.policy("names"), egress_cases.pins(0), Packet(ip_address("203.0.113.10"), 6, 443), SITE, 1
    )
    assert str(allowed) == 'allowed by rule "allow tcp 443 to www.lab.test"'


# No sequence of answers, clock steps, renewals and reloads lets a packet pass that no rule and no live pin names.

NAMES = ("www.lab.test", "a.example.com", "b.example.com", "admin.example.com", "elsewhere.test")
ADDRESSES = tuple(
    map(ip_address, ("203.0.113.1", "203.0.113.2", "10.1.1.1", "10.2.2.2", "169.254.169.254", "10.0.1.5"))
)
RULES = st.lists(
    st.sampled_from(
        [
            RuleSettings(name="www.lab.test", ports=(443,)),
            RuleSettings(name="*.example.com"),
            RuleSettings(name="*"),
            RuleSettings(network=ip_network("10.1.0.0/16")),
            RuleSettings(network=ip_network("0.0.0.0/0"), ports=(443,)),
        ]
    ),
    max_size=3,
    unique=True,
).map(tuple)
DENIED = st.sampled_from(
    [(), (RuleSettings(name="admin.example.com"),), (RuleSettings(network=ip_network("203.0.113.2/32")),)]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("answer"),
            st.sampled_from(NAMES),
            st.lists(st.tuples(st.sampled_from(ADDRESSES), st.floats(0, 10_000)), max_size=4),
        ),
        st.tuples(st.just("wait"), st.floats(0, 4000)),
        st.tuples(st.just("reload"), RULES, DENIED),
    ),
    max_size=20,
)


class Oracle:
    """Remembers every answer, and searches all of them: slow, and simple."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object, float]] = []

    def passes(self, settings: PolicySettings, address: object, port: int, now: float) -> bool:
        if str(address) in {"169.254.169.254", "10.0.1.5"}:
            return False
        if any(rule.network is not None and address in rule.network for rule in settings.deny):
            return False
        for rule in settings.allow:
            if rule.ports and port not in rule.ports:
                continue
            if rule.network is not None and address in rule.network:
                return True
            if rule.name is not None and any(
                told == address and until > now and self.fits(rule.name, name) for name, told, until in self.told
            ):
                return True
        return False

    @staticmethod
    def fits(pattern: str, name: str) -> bool:
        labels, wanted = name.split("."), pattern.split(".")
        if wanted[0] != "*":
            return labels == wanted
        return len(labels) >= len(wanted) and labels[len(labels) - len(wanted) + 1 :] == wanted[1:]

    def reload(self, settings: PolicySettings) -> None:
        """What the new policy does not name is permanently forgotten."""
        denied = {rule.name for rule in settings.deny}
        patterns = [rule.name for rule in settings.allow if rule.name is not None]
        self.told = [
            entry
            for entry in self.told
            if entry[0] not in denied and any(self.fits(pattern, entry[0]) for pattern in patterns)
        ]


def is_named(policy: Policy, pin: Pin) -> bool:
    return policy.pins(pin.name)


@given(first=RULES, steps=STEPS, limit=st.sampled_from([3, 1000]))
def test_nothing_passes_that_no_rule_and_no_live_pin_names(
    first: tuple[RuleSettings, ...], steps: list[tuple[object, ...]], limit: int
) -> None:
    settings, pins, oracle, now = PolicySettings("deny", first), Pins(limit), Oracle(), 0.0
    for step in steps:
        match step:
            case ("wait", float(seconds)):
                now += seconds
            case ("reload", allow, deny):
                settings = PolicySettings("deny", allow, deny)  # type: ignore[arg-type]
                pins.keep(partial(is_named, settings.policy()))
                oracle.reload(settings)
            case ("answer", str(name), list(found)):
                if settings.policy().has_names and settings.policy().allows_name(name):
                    told = [(address, ttl) for address, ttl in found if settings.policy().may_tell(address, SITE)]
                    pins.pin(name, told, now)
                    oracle.told += [(name, at, now + min(max(ttl, MIN_TTL), MAX_TTL)) for at, ttl in told]
        assert len(pins) <= limit
        for address in ADDRESSES:
            for port in (443, 80):
                passes = judge(settings.policy(), pins, Packet(address, TCP, port), SITE, now).allowed
                assert not passes or oracle.passes(settings, address, port, now - GRACE)
                if limit == 1000:  # and while nothing had to be forgotten, what is named does pass
                    assert passes or not oracle.passes(settings, address, port, now)


def test_a_pin_is_for_rules_of_its_own_name() -> None:
    settings = PolicySettings(
        "deny", (RuleSettings(name="a.test", ports=(1,)), RuleSettings(name="b.test", ports=(2,)))
    )
    pins = Pins()
    pins.adopt([Pin("a.test", ADDRESSES[0], 10), Pin("b.test", ADDRESSES[0], 20)])
    for now, expected in ((5, (True, True)), (15, (False, True)), (25, (False, False))):
        packets = [Packet(ADDRESSES[0], TCP, port) for port in (1, 2)]
        assert tuple(judge(settings.policy(), pins, packet, SITE, now).allowed for packet in packets) == expected
