"""Names and addresses of one enclave: a pinned address is in the rules first, and refusals are known."""

from __future__ import annotations

# ruff: noqa: E101 - as nft indents
import asyncio
import re
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import egress_cases
from tests.egress_cases import SITE
from tests.unit.packet_filter import RULES
from wgvsock.addresses import IpAddress
from wgvsock.dns.judge import NameJudge
from wgvsock.egress.names import GRACE, MAX_ANSWER, MAX_TTL, MIN_TTL, Pin, Pins
from wgvsock.egress.policy import Policy
from wgvsock.egress.settings import PolicySettings, RuleSettings
from wgvsock.egress.trial import parse_destination
from wgvsock.relay.uplink.egress import MAX_REMEMBERED, PINNED, Egress
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import Netfilter, Ran
from wgvsock.system.filter.rules import HeldPin, Ruleset, facts_in
from wgvsock.testing import ManualClock

A, B = ip_address("203.0.113.10"), ip_address("203.0.113.11")
SIX = ip_address("2001:db8::10")
METADATA = ip_address("169.254.169.254")
NAME = "www.lab.test"

_ELEMENT = re.compile(r"(add|delete) element inet \S+ (\S+) \{ (\S+)(?: timeout (\d+)(ms|s))?(?: comment \S+ \S+)? \}")
_SET = re.compile(r"\tset (allow_\S+) \{[^}]*?elements = \{ ([^}]*) \}")


class KernelSets:
    """Replaces nft: sets of addresses with the time at which each ends.

    Attributes:
        sets: By name.
        runs: Commands that changed something.
        fails: Whether the tool refuses everything.
        listing: What a list of the table prints.
        gate: Waited for before anything is changed.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.sets: dict[str, dict[str, float]] = {}
        self.runs: list[str] = []
        self.fails = False
        self.listing = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self._clock = clock

    async def __call__(self, command: Sequence[str], text: str) -> Ran:
        if command[:2] == ["nft", "-n"]:
            return Ran(0, output=self.listing)
        if command[:2] != ["nft", "-f"]:
            self.runs.append(" ".join(command))
            return Ran(0)
        await self.gate.wait()
        if self.fails:
            return Ran(1, "Error: no")
        self.runs.append(text)
        if "chain" in text:
            self.sets = {}
            for name, elements in _SET.findall(text):
                parts = [element.split(" timeout ") for element in elements.split(", ")]
                self.sets[name] = {
                    address: self._clock() + int(left.split(" ")[0][:-2]) / 1000 for address, left in parts
                }
        for verb, name, address, number, unit in _ELEMENT.findall(text):
            members = self.sets.setdefault(name, {})
            if verb == "delete":
                del members[address]  # an error where there is none, as in the kernel
            elif address not in members:  # an old kernel ignores the second
                members[address] = self._clock() + int(number) * (0.001 if unit == "ms" else 1)
        return Ran(0)

    def holds(self, rule: int, address: IpAddress) -> bool:
        until = self.sets.get(f"allow_{rule}_v{address.version}", {}).get(str(address))
        return until is not None and until > self._clock()


class Bench:
    """An enclave's egress under the policy "names", and rules that judge by it."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.clock = ManualClock()
        self.kernel = KernelSets(self.clock)
        self.subject = Egress(self.clock)
        self.netfilter = Netfilter("nft", "relay", lambda undo: undo, self.kernel, self.subject.elements)
        self.subject.attach(self.netfilter)
        self.policy = policy or egress_cases.policy("names")
        self.subject.adopt(self.policy, SITE)

    def rules(self, policy: Policy | None = None, *, is_open: bool = True) -> Ruleset:
        return Ruleset("relay", "wg0", RULES.uplinks, RULES.sources, policy=policy or self.policy, is_open=is_open)

    async def open(self, policy: Policy | None = None) -> None:
        await self.netfilter.apply(self.rules(policy))


@pytest.mark.asyncio
async def test_a_pin_is_in_force_when_it_is_told() -> None:
    bench = Bench()
    await bench.open()
    assert bench.subject.allows(NAME)
    assert await bench.subject.pin(NAME, [(A, 2.0), (SIX, 2.0)]) == frozenset()
    assert bench.kernel.holds(1, A)
    assert bench.kernel.holds(1, SIX)
    assert not bench.kernel.holds(2, A)  # the rule for other names
    bench.clock.advance(MIN_TTL + GRACE)
    assert not bench.kernel.holds(1, A)


@pytest.mark.asyncio
async def test_a_name_that_is_asked_for_again_is_renewed_before_it_ends_and_not_each_time() -> None:
    bench = Bench()
    await bench.open()
    for _ in range(200):
        assert await bench.subject.pin(NAME, [(A, 2.0)]) == frozenset()
        assert bench.kernel.holds(1, A)
        bench.clock.advance(2.0)
        assert bench.kernel.holds(1, A)
    assert 10 <= len(bench.kernel.runs) - 2 <= 200 * 2.0 / GRACE + 1


@pytest.mark.asyncio
async def test_what_would_happen_depends_on_what_a_name_has_now() -> None:
    bench = Bench()
    await bench.open()
    destination = parse_destination(f"{NAME}:443", "tcp")
    assert [(each.allowed, each.address) for each in bench.subject.outcomes(destination)] == [(True, None)]
    await bench.subject.pin(NAME, [(A, 2.0)])
    assert [(each.allowed, each.address) for each in bench.subject.outcomes(destination)] == [(True, A)]
    bench.clock.advance(MIN_TTL + GRACE)
    assert [each.address for each in bench.subject.outcomes(destination)] == [None]
    (other,) = bench.subject.outcomes(parse_destination(f"{A}:443", "tcp"))
    assert (other.allowed, other.why) == (False, "denied by default")


@pytest.mark.asyncio
async def test_whoever_asks_while_a_pin_is_being_written_waits_for_it_and_one_call_takes_all() -> None:
    bench = Bench()
    await bench.open()
    before = len(bench.kernel.runs)
    bench.kernel.gate.clear()
    first = [asyncio.create_task(bench.subject.pin(NAME, [(A, 2.0)])) for _ in range(2)]
    others = [asyncio.create_task(bench.subject.pin(f"{n}.example.com", [(B, 2.0)])) for n in range(50)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in (*first, *others))
    bench.kernel.gate.set()
    assert set(await asyncio.gather(*first, *others)) == {frozenset()}
    assert bench.kernel.holds(2, B)
    assert len(bench.kernel.runs) - before == 2


@pytest.mark.asyncio
async def test_the_tool_rests_as_long_as_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    await bench.open()
    run, paused = bench.kernel, []

    async def slow(command: Sequence[str], text: str) -> Ran:
        bench.clock.advance(0.02)
        return await run(command, text)

    async def sleep(seconds: float) -> None:
        paused.append(round(seconds, 6))
        bench.clock.advance(seconds)

    monkeypatch.setattr(bench.netfilter, "_run", slow)
    monkeypatch.setattr("wgvsock.relay.uplink.egress.asyncio.sleep", sleep)
    await bench.subject.pin("a.example.com", [(A, 60.0)])
    bench.clock.advance(0.005)
    await bench.subject.pin("b.example.com", [(B, 60.0)])
    bench.clock.advance(0.02)
    await bench.subject.pin("c.example.com", [(SIX, 60.0)])
    assert paused == [0.015]


@pytest.mark.asyncio
async def test_a_pin_changes_the_sets_of_its_own_rules_and_a_forgotten_one_those_of_all() -> None:
    rules = tuple(RuleSettings(name=f"x{number}.test") for number in range(50))
    bench = Bench(PolicySettings("deny", (*rules, RuleSettings(name="*.lab.test"))).policy())
    bench.subject.pins = Pins(limit=2)
    await bench.open()
    await bench.subject.pin(NAME, [(A, 60.0)])
    assert len(bench.kernel.runs[-1].splitlines()) == 3
    await bench.subject.pin("x7.test", [(A, 60.0)])
    assert bench.kernel.holds(8, A)
    await bench.subject.pin("x8.test", [(B, 60.0)])
    assert bench.kernel.holds(9, B)
    assert not bench.kernel.holds(51, A)
    assert bench.kernel.holds(8, A)


@pytest.mark.asyncio
async def test_a_pin_that_the_packet_filter_does_not_take_is_not_told_and_is_tried_again() -> None:
    bench = Bench()
    await bench.open()
    bench.kernel.fails = True
    assert await bench.subject.pin(NAME, [(A, 2.0)]) == {A}
    bench.kernel.fails = False
    assert await bench.subject.pin(NAME, [(A, 2.0)]) == frozenset()
    assert bench.kernel.holds(1, A)


@pytest.mark.asyncio
async def test_rules_that_are_put_back_have_what_is_pinned_with_the_time_that_is_left() -> None:
    bench = Bench()
    await bench.open()
    await bench.subject.pin(NAME, [(A, 600.0)])
    bench.clock.advance(100)
    bench.kernel.sets.clear()  # another program's flush ruleset
    await bench.open()
    assert bench.kernel.sets["allow_1_v4"] == {str(A): pytest.approx(bench.clock() + 500 + GRACE)}


@pytest.mark.asyncio
async def test_closed_rules_hold_nothing_and_open_with_what_is_pinned() -> None:
    bench = Bench()
    await bench.netfilter.apply(bench.rules(is_open=False))
    await bench.subject.pin(NAME, [(A, 600.0)])
    assert not bench.kernel.holds(1, A)
    await bench.open()
    assert bench.kernel.holds(1, A)


@pytest.mark.asyncio
async def test_a_reload_keeps_what_the_policy_still_names() -> None:
    bench = Bench()
    await bench.open()
    await bench.subject.pin(NAME, [(A, 600.0)])
    await bench.subject.pin("a.example.com", [(B, 600.0)])
    policy = PolicySettings("deny", (RuleSettings(name="other.test"), RuleSettings(name="*.lab.test"))).policy()
    await bench.open(policy)
    bench.subject.adopt(policy, SITE)
    assert bench.kernel.holds(2, A)
    assert [pin.address for pin in bench.subject.live()] == [A]
    await bench.open()  # and back: what was forgotten stays so
    assert not bench.kernel.holds(2, B)


@pytest.mark.asyncio
async def test_a_successor_has_the_pins_that_its_policy_names() -> None:
    bench = Bench()
    bench.subject.inherit([Pin(NAME, A, bench.clock() + 9), Pin("elsewhere.test", B, bench.clock() + 9)])
    await bench.open()
    assert bench.kernel.holds(1, A)
    assert [pin.name for pin in bench.subject.live()] == [NAME]


@pytest.mark.asyncio
async def test_the_next_relay_of_this_name_goes_on_with_what_is_pinned() -> None:
    first, second = Bench(), Bench()
    odd = 'a" }; flush ruleset; #.example.com'
    long = "x" * 61 + ".example.com"
    for name in (NAME, "a.example.com", odd, long):
        await first.subject.pin(name, [(A, 600.0), (SIX, 60.0)])
    facts = first.subject.facts(1_000_000.0)
    assert {fact.target for fact in facts} == {NAME, "a.example.com"}
    listing = "".join(f'counter packets 0 bytes 0 comment "{fact}"\n' for fact in facts)
    assert all(len(str(fact)) <= 128 for fact in facts)
    second.clock.advance(5000)  # another process, another clock
    second.subject.recall(facts_in(listing), 1_000_100.0)
    left = {(pin.name, pin.address): pin.until - second.clock() for pin in second.subject.live()}
    assert left == {(NAME, A): 500 + GRACE, ("a.example.com", A): 500 + GRACE}  # the others have ended
    await second.open()
    assert second.kernel.holds(1, A)


@pytest.mark.asyncio
async def test_a_relay_goes_on_with_what_the_rules_of_a_killed_one_hold() -> None:
    first, second = Bench(), Bench()
    await first.open()
    odd = 'a" }; flush ruleset; #.example.com'
    for name, address in ((NAME, A), (odd, B)):
        await first.subject.pin(name, [(address, 600.0)])
    (written,) = re.findall(r"203\.0\.113\.10 timeout \S+ (comment .*?) \}", "".join(first.kernel.runs))
    assert written == f'comment "pinned {NAME}"'
    assert "flush" not in "".join(first.kernel.runs)
    held = [HeldPin(NAME, A, 500.0), HeldPin("elsewhere.test", B, 500.0), HeldPin(NAME, METADATA, 500.0)]
    second.subject.recall([], 0.0, [*held, HeldPin(NAME, SIX, 1e9)])
    left = {(pin.name, pin.address): pin.until - second.clock() for pin in second.subject.live()}
    assert left == {(NAME, A): 500, (NAME, SIX): MAX_TTL + GRACE}


@pytest.mark.parametrize(
    "fact",
    [
        Fact(PINNED, "www.lab.test", "203.0.113.999/99999"),
        Fact(PINNED, "www.lab.test", "203.0.113.1"),
        Fact(PINNED, "www.lab.test", "169.254.169.254/99999"),
        Fact(PINNED, "elsewhere.test", "203.0.113.1/99999"),
        Fact(PINNED, "www.lab.test", "203.0.113.1/99"),
        Fact("published", "tcp/443", "10.73.0.2/99999"),
    ],
)
def test_what_is_no_pin_of_this_policy_is_not_gone_on_with(fact: Fact) -> None:
    bench = Bench()
    bench.subject.recall([fact], 100.0)
    assert bench.subject.live() == []


def test_no_pin_is_gone_on_with_for_longer_than_it_may_last() -> None:
    """Meanwhile the wall clock was set back, or another program wrote it."""
    bench = Bench()
    bench.subject.recall([Fact(PINNED, NAME, f"{A}/999999999999")], 100.0)
    assert [pin.until - bench.clock() for pin in bench.subject.live()] == [MAX_TTL + GRACE]


@pytest.mark.asyncio
async def test_addresses_that_no_name_may_stand_for_are_not_told_and_are_counted() -> None:
    bench = Bench()
    await bench.open()
    bad = [METADATA, ip_address("198.18.73.2"), ip_address("10.0.1.5"), ip_address("::ffff:169.254.169.254")]
    assert await bench.subject.pin(NAME, [(address, 60.0) for address in (A, *bad)]) == frozenset(bad)
    assert bench.kernel.holds(1, A)
    assert not any(bench.kernel.holds(1, address) for address in bad)
    snapshot = bench.subject.snapshot()
    assert (snapshot.addresses_withheld, snapshot.names_refused) == (4, 0)
    (refused,) = snapshot.refused
    assert (refused.name, set(refused.withheld)) == (NAME, set(map(str, bad)))


@pytest.mark.asyncio
async def test_of_an_endless_answer_no_more_is_told_than_is_pinned() -> None:
    bench = Bench()
    await bench.open()
    found = [(ip_address(0x0B000000 + number), 60.0) for number in range(MAX_ANSWER + 5)]
    assert len(await bench.subject.pin(NAME, found)) == 5
    assert len(bench.subject.pins) == MAX_ANSWER


@pytest.mark.asyncio
async def test_without_names_nothing_is_pinned_and_rebinding_is_refused_all_the_same() -> None:
    bench = Bench(Policy())
    await bench.open()
    before = len(bench.kernel.runs)
    assert bench.subject.allows("anything.test")
    assert await bench.subject.pin("anything.test", [(A, 60.0), (METADATA, 60.0)]) == {METADATA}
    assert len(bench.kernel.runs) == before


def test_names_that_are_refused_are_counted_and_the_latest_are_known() -> None:
    bench = Bench()
    for number in range(MAX_REMEMBERED + 10):
        assert not bench.subject.allows(f"x{number}.test")
    assert not bench.subject.allows("x5000.test")
    bench.clock.advance(5)
    assert not bench.subject.allows("x1033.test")
    snapshot = bench.subject.snapshot()
    assert snapshot.names_refused == MAX_REMEMBERED + 12
    assert len(snapshot.refused) == MAX_REMEMBERED
    assert [(one.name, one.count, one.last) for one in snapshot.refused[:2]] == [
        ("x1033.test", 2, 0.0),
        ("x5000.test", 1, 5.0),
    ]


LISTING = """\
	set denied_v4 {{
		elements = {{ {0} . 6 . 443 counter packets {1} bytes 60 expires 290s }}
	}}
	set denied_portless_v4 {{
		elements = {{ 203.0.113.99 . 1 counter packets 1 bytes 60 expires 299s,
			     203.0.113.98 . 47 counter packets 1 bytes 60 expires 300s }}
	}}
		counter packets {2} bytes 0 goto admit comment "allow 1"
		counter packets 4 bytes 0 goto deny comment "default"
"""


@pytest.mark.asyncio
async def test_what_was_judged_is_counted_over_all_rules_that_there_were() -> None:
    bench = Bench()
    await bench.open()
    bench.kernel.listing = LISTING.format(A, 3, 10)
    for _ in range(2):  # a second look at the same counts counts nothing twice
        await bench.subject.look()
    bench.kernel.listing = LISTING.format(A, 5, 12)
    await bench.subject.look()
    await bench.open()
    bench.kernel.listing = LISTING.format(A, 1, 2)
    await bench.subject.look()
    snapshot = bench.subject.snapshot()
    assert [(rule.key, rule.flows) for rule in snapshot.rules] == [
        *(("deny 1", 0), ("deny 2", 0)),
        *(("allow 1", 14), ("allow 2", 0)),
    ]
    assert snapshot.others == {"default": 8}
    assert {(one.address, one.protocol, one.port): one.count for one in snapshot.denied} == {
        (str(A), "tcp", 443): 6,
        ("203.0.113.99", "icmp", None): 2,
        ("203.0.113.98", "47", None): 2,
    }


@pytest.mark.asyncio
async def test_a_destination_is_shown_with_its_name_and_with_what_denies_it() -> None:
    bench = Bench()
    await bench.open()
    await bench.subject.pin(NAME, [(A, 2.0)])
    bench.clock.advance(MIN_TTL + GRACE + 1)
    bench.kernel.listing = LISTING.format(A, 3, 0)
    await bench.subject.look()
    bench.clock.advance(7)
    # The kernel forgot it, and its count starts over.
    bench.kernel.listing = LISTING.format(A, 1, 0).replace("290s", "280s")
    await bench.subject.look()
    one = next(one for one in bench.subject.snapshot().denied if one.address == str(A))
    assert (one.name, one.count, one.last, one.first) == (NAME, 4, 20.0, 17.0)
    assert one.by == "denied by default"
    other = next(one for one in bench.subject.snapshot().denied if one.protocol == "47")
    assert (other.name, other.by) == (None, "denied as neither TCP nor UDP nor an ICMP echo request")


def test_answers_are_kept_as_long_as_pins() -> None:
    judge: NameJudge = Bench().subject  # which mypy looks at
    assert judge.longest == MAX_TTL
    assert Bench(Policy()).subject.longest == float("inf")


def test_before_there_are_rules_there_is_nothing_to_look_at() -> None:
    subject = Egress(ManualClock())
    asyncio.run(subject.look())
    assert subject.snapshot().others == {}
    assert asyncio.run(subject.pin(NAME, [(A, 60.0)])) == frozenset()


# No sequence of answers, clock steps, renewals, reloads, repairs and failures has the rules hold an address that no
# live pin names.

POLICIES = (
    PolicySettings("deny", (RuleSettings(name=NAME), RuleSettings(name="*.example.com"))).policy(),
    PolicySettings("deny", (RuleSettings(name="*.example.com"), RuleSettings(name=NAME))).policy(),
    PolicySettings("deny", (RuleSettings(name="other.test"),)).policy(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("answer"),
            st.sampled_from([NAME, "a.example.com", "other.test"]),
            st.lists(st.tuples(st.sampled_from([A, B, SIX]), st.sampled_from([0.0, 61.0, 5000.0])), max_size=3),
        ),
        st.tuples(st.just("wait"), st.floats(0, 200)),
        st.tuples(st.just("reload"), st.sampled_from(POLICIES)),
        st.tuples(st.just("repair"), st.booleans()),
        st.tuples(st.just("tool fails"), st.booleans()),
    ),
    max_size=25,
)


@given(steps=STEPS)
def test_the_rules_hold_what_is_pinned_and_nothing_else(steps: list[tuple[object, ...]]) -> None:
    asyncio.run(_follow(steps, Pins()))


@given(steps=STEPS)
def test_also_when_pins_have_to_be_forgotten(steps: list[tuple[object, ...]]) -> None:
    """With a working tool: what it could not remove expires."""
    asyncio.run(_follow([step for step in steps if step[0] != "tool fails"], Pins(limit=2)))


async def _follow(steps: list[tuple[object, ...]], pins: Pins) -> None:
    bench = Bench(POLICIES[0])
    bench.subject.pins = pins
    await bench.open()
    policy = POLICIES[0]
    for step in steps:
        match step:
            case ("wait", float(seconds)):
                bench.clock.advance(seconds)
            case ("tool fails", bool(fails)):
                bench.kernel.fails = fails
            case ("reload", Policy() as wanted) if not bench.kernel.fails:
                await bench.open(wanted)
                bench.subject.adopt(wanted, SITE)
                policy = wanted
            case ("repair", bool(gone)) if not bench.kernel.fails:
                if gone:
                    bench.kernel.sets.clear()
                await bench.open(policy)
            case ("answer", str(name), list(found)) if bench.subject.allows(name):
                withheld = await bench.subject.pin(name, found)
                for rule in policy.name_rules:
                    if rule.name is not None and rule.name.matches(name):
                        told = [at for at, _ in found if at not in withheld and any(pins.names(at, bench.clock()))]
                        assert all(bench.kernel.holds(rule.position, at) for at in told)
        now = bench.clock()
        for rule in policy.name_rules:
            for address in (A, B, SIX):
                if bench.kernel.holds(rule.position, address):
                    assert rule.name is not None
                    live = bench.subject.pins.of(address, now - 0.002)  # nft counts in milliseconds
                    assert any(rule.name.matches(pin.name) for pin in live)
