"""The declaration of each setting says whether a reload may change it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from wgvsock.relay.sections import FIXED, InterfaceSettings, fixed_difference


@dataclass(frozen=True)
class Inner:
    name: str = field(default="a", metadata=FIXED)
    size: int = 1


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    pinned: int = field(default=1, metadata=FIXED)
    other: int = 1


def test_the_first_fixed_difference_is_named_by_its_path() -> None:
    one = Outer()
    assert fixed_difference(one, one) is None
    assert fixed_difference(one, replace(one, other=2, inner=Inner(size=2))) is None
    assert fixed_difference(one, replace(one, pinned=2)) == "pinned"
    assert fixed_difference(one, replace(one, inner=Inner("b"))) == "inner.name"


def test_an_interface_s_name_is_fixed_and_its_mtu_is_not() -> None:
    one = InterfaceSettings()
    assert fixed_difference(one, replace(one, mtu=1400)) is None
    assert fixed_difference(one, replace(one, name="wg9")) == "name"
