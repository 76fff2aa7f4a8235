"""Names of rules, and the temporary addresses of names."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from wgvsock.egress.names import GRACE, MAX_TTL, MIN_TTL, Changes, Pin, Pins, normalized, parse_pattern
from wgvsock.errors import ConfigurationError

A, B, C = (ip_address(f"203.0.113.{number}") for number in (1, 2, 3))
NAME = "www.lab.test"


def test_a_name_is_compared_in_lower_case_and_without_the_root_s_dot() -> None:
    assert normalized("WWW.Lab.Test.") == NAME
    assert str(parse_pattern("WWW.Lab.Test.")) == NAME
    assert parse_pattern(NAME).matches(NAME)
    assert not parse_pattern(NAME).matches("a." + NAME)
    assert not parse_pattern(NAME).matches("xwww.lab.test")


def test_a_wildcard_is_for_the_names_below() -> None:
    wildcard = parse_pattern("*.lab.test")
    assert wildcard.matches("www.lab.test")
    assert wildcard.matches("a.b.lab.test")
    for other in ("lab.test", "xlab.test", ".lab.test", "lab.test.example"):
        assert not wildcard.matches(other)
    assert parse_pattern("*").matches("anything")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 63"),
        (".", "1 to 63"),
        ("a..b", "1 to 63"),
        ("www.*.test", "1 to 63"),
        ("w*.lab.test", "1 to 63"),
        ("-a.test", "1 to 63"),
        ("a b.test", "1 to 63"),
        ('a".test', "1 to 63"),
        ("x" * 64 + ".test", "1 to 63"),
        (".".join(["abc"] * 64), "1 to 63"),
        ("10.0.0.1", "an address"),
        ("bücher.example", "outside ASCII"),
    ],
)
def test_what_is_no_name(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_pattern(text)


def live(pins: Pins, address: object, now: float) -> set[str]:
    return set(pins.names(address, now))  # type: ignore[arg-type]


def test_a_pin_lasts_for_its_ttl_within_bounds_and_the_grace() -> None:
    pins = Pins()
    assert pins.pin(NAME, [(A, 2), (B, 300), (C, 1e6)], 100) == Changes(frozenset({A, B, C}), frozenset())
    ends = {pin.address: pin.until for pin in pins.live(100)}
    assert ends == {A: 100 + MIN_TTL + GRACE, B: 400 + GRACE, C: 100 + MAX_TTL + GRACE}
    assert live(pins, A, ends[A] - 1) == {NAME}
    assert live(pins, A, ends[A]) == set()


def test_a_renewed_pin_ends_later_and_never_earlier() -> None:
    pins = Pins()
    pins.pin(NAME, [(A, 600)], 0)
    pins.pin(NAME, [(A, 2)], 10)
    assert pins.live(10) == [Pin(NAME, A, 600 + GRACE)]
    pins.pin(NAME, [(A, 600)], 40)
    assert pins.live(40) == [Pin(NAME, A, 640 + GRACE)]


def test_a_pin_that_lasts_as_long_as_the_answer_is_left_as_it_is() -> None:
    pins = Pins()
    assert pins.pin(NAME, [(A, 2)], 0).made == {A}
    assert pins.pin(NAME, [(A, 2)], GRACE).made == frozenset()
    assert pins.live(GRACE) == [Pin(NAME, A, MIN_TTL + GRACE)]
    assert pins.pin(NAME, [(A, 2), (B, 2)], GRACE + 1).made == {A, B}
    assert {pin.until for pin in pins.live(GRACE + 1)} == {GRACE + 1 + MIN_TTL + GRACE}


def test_each_name_of_an_address_has_its_own_end() -> None:
    pins = Pins()
    pins.adopt([Pin("a.lab.test", A, 10), Pin("b.lab.test", A, 20), Pin("c.test", A, 30)])
    assert {pin.name: pin.until for pin in pins.of(A, 5)} == {"a.lab.test": 10, "b.lab.test": 20, "c.test": 30}
    assert [pin.name for pin in pins.of(A, 20)] == ["c.test"]
    assert pins.of(B, 5) == []


def test_a_full_table_forgets_what_was_asked_for_longest_ago() -> None:
    pins = Pins(limit=2)
    pins.pin("a.test", [(A, 3600)], 0)
    pins.pin("b.test", [(B, 60)], 1)
    assert pins.pin("a.test", [(A, 60)], 2).made == frozenset()
    assert pins.pin("c.test", [(C, 60)], 3) == Changes(frozenset({C}), frozenset({B}))
    assert [pin.address for pin in pins.live(3)] == [A, C]
    assert len(pins) == 2
    assert live(pins, B, 3) == set()


def test_what_has_ended_is_forgotten() -> None:
    pins = Pins()
    pins.adopt([Pin("a.test", A, 10), Pin("b.test", A, 20)])
    assert pins.live(15) == [Pin("b.test", A, 20)]
    assert len(pins) == 1


def test_only_wanted_pins_are_kept() -> None:
    pins = Pins()
    pins.adopt([Pin("a.test", A, 10), Pin("b.test", A, 20), Pin("b.test", B, 20)])
    pins.keep(lambda pin: pin.name == "a.test")
    assert pins.live(0) == [Pin("a.test", A, 10)]
    assert live(pins, B, 0) == set()
