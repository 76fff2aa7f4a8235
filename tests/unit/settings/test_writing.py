"""What is written reads back the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_interface

from hypothesis import given
from hypothesis import strategies as st

from wgvsock import settings
from wgvsock.addresses import Cid, IpInterface, Port, StreamAddress, VsockAddress


@dataclass(frozen=True, slots=True)
class Inner:
    port: int
    ratio: float | None = None
    deep: tuple[Inner, ...] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    address: StreamAddress | None = None
    interfaces: tuple[IpInterface, ...] = ()
    words: tuple[str, ...] | None = None
    enabled: bool = False
    seconds: float = 1.5
    inner: Inner | None = None
    many: tuple[Inner, ...] = field(default=())


COMPLETE = Outer(
    name='a "name"',
    address=VsockAddress(Cid(16), Port(51820)),
    interfaces=(ip_interface("10.73.0.2/24"), ip_interface("fd73::2/64")),
    words=("x", "y"),
    enabled=True,
    seconds=3.0,
    inner=Inner(80),
    many=(Inner(1, 0.5, (Inner(3),)), Inner(2)),
)


def test_what_is_written_reads_back_the_same() -> None:
    assert settings.parse(Outer, settings.format_toml(COMPLETE)) == COMPLETE


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=30), st.floats(0, 1))
def test_any_text_and_number_reads_back_the_same(text: str, ratio: float) -> None:
    value = Outer(text, words=(text, "x"), seconds=ratio, inner=Inner(1, ratio=ratio))
    assert settings.parse(Outer, settings.format_toml(value)) == value


def test_plain_values_are_those_of_json() -> None:
    assert settings.to_plain(COMPLETE) == {
        "name": 'a "name"',
        "address": "vsock:16:51820",
        "interfaces": ["10.73.0.2/24", "fd73::2/64"],
        "words": ["x", "y"],
        "enabled": True,
        "seconds": 3.0,
        "inner": {"port": 80, "ratio": None, "deep": []},
        "many": [
            {"port": 1, "ratio": 0.5, "deep": [{"port": 3, "ratio": None, "deep": []}]},
            {"port": 2, "ratio": None, "deep": []},
        ],
    }


@dataclass(frozen=True, slots=True)
class Part:
    free: int = 1
    kept: int = field(default=2, metadata={"fixed": True})


@dataclass(frozen=True, slots=True)
class Whole:
    one: Part = field(default_factory=Part, metadata={"fixed": True})
    many: tuple[Part, ...] = (Part(), Part())
    none: tuple[Part, ...] = ()
    values: tuple[int, ...] = (1, 2)


def test_which_keys_a_reload_takes() -> None:
    assert settings.reloadable(Whole()) == {
        "one.free": False,
        "one.kept": False,
        "many.free": True,
        "many.kept": False,
        "none": True,
        "values": True,
    }


def test_comments_stand_behind_values_and_read_back_the_same() -> None:
    text = settings.format_toml(Whole(), {"many.free": "why", "one.kept": "restart"})
    assert text.count("free = 1  # why\n") == 2
    assert settings.parse(Whole, text) == Whole()
