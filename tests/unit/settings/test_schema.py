"""What a schema accepts, what it refuses, and the line."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.effort import effort
from wgvsock import settings
from wgvsock.addresses import Cid, IpAddress, IpInterface, IpNetwork, Port, StreamAddress, VsockAddress
from wgvsock.errors import ConfigurationError
from wgvsock.settings import Between, InvalidSettingError, UnknownKeyError, UnreadableConfigurationError


@dataclass(frozen=True, slots=True)
class Inner:
    port: Annotated[int, Between(1, 65535)]
    protocol: Literal["tcp", "udp"] = "tcp"
    ratio: Annotated[float, Between(0, 1)] | None = None

    def __post_init__(self) -> None:
        if self.port == 666:
            raise ConfigurationError("cannot use the port", why="it is evil", fix="take another")
        if self.port == 667:
            raise InvalidSettingError("named already", why="it is", fix="it is not")


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    address: StreamAddress | None = None
    server: IpAddress | None = None
    interfaces: tuple[IpInterface, ...] = ()
    networks: tuple[IpNetwork, ...] = ()
    words: tuple[str, ...] | None = None
    enabled: bool = False
    seconds: float = 1.5
    inner: Inner | None = None
    many: tuple[Inner, ...] = field(default=())


COMPLETE = """\
name = "a \\"name\\""
address = "vsock:16:51820"
server = "10.0.0.1"
interfaces = ["10.73.0.2/24", "fd73::2/64"]
networks = ["0.0.0.0/0"]
words = ["x", 'y']
enabled = true
seconds = 3

[inner]
port = 80

[[many]]
port = 1
protocol = "udp"
ratio = 0.5

[[many]]
port = 2
"""


def refused(text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        settings.parse(Outer, text, "file.toml")
    return caught.value


def test_every_kind_of_value() -> None:
    assert settings.parse(Outer, COMPLETE) == Outer(
        name='a "name"',
        address=VsockAddress(Cid(16), Port(51820)),
        server=ip_address("10.0.0.1"),
        interfaces=(ip_interface("10.73.0.2/24"), ip_interface("fd73::2/64")),
        networks=(ip_network("0.0.0.0/0"),),
        words=("x", "y"),
        enabled=True,
        seconds=3.0,
        inner=Inner(80),
        many=(Inner(1, "udp", 0.5), Inner(2)),
    )


def test_defaults() -> None:
    assert settings.parse(Outer, 'name = "x"') == Outer("x")


@pytest.mark.parametrize(
    ("text", "line", "nearest"),
    [
        ('name = "x"\nenabeld = true', 2, "enabled"),
        ('name = "x"\n[iner]\nport = 1', 2, "inner"),
        ('name = "x"\n[inner]\n\nprot = 1', 4, "port"),
        ('name = "x"\n[[many]]\nport = 1\n[[many]]\nport = 1\nratoi = 1', 6, "ratio"),
        ('name = "x"\ninner = {port = 1, protcol = "tcp"}', 2, "protocol"),
        ('name = "x"\nwords = [\n"[inner]", # ]\n"a = 1"\n]\nsecond = 1', 6, "seconds"),
        ("name = '''\n[inner]\nx = 1\n'''\nsecond = 1", 5, "seconds"),
        ('name = """\nx = 1 """\n"wrods" = 1', 3, "words"),
        ("name = 'a # b'\n\"wordz\".key = 1", 2, "words"),
        ('name = "x"\nwords = ["""\n]""", "y",\n]\nenable = 1', 5, "enabled"),
    ],
)
def test_an_unknown_key_names_line_and_nearest_valid_key(text: str, line: int, nearest: str) -> None:
    error = refused(text)
    assert isinstance(error, UnknownKeyError)
    assert error.code == "WGV-E002"
    assert error.exit_code == 2
    assert f"file.toml, line {line}: unknown key" in error.what
    assert error.fix == f'the nearest valid key is "{nearest}"'


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("name = 1", 1, "a string was expected, not a whole number"),
        ('name = "x"\nenabled = 1', 2, "true or false was expected, not a whole number"),
        ('name = "x"\nseconds = true', 2, "a number was expected, not a boolean"),
        ('name = "x"\nseconds = 2020-01-01', 2, "a number was expected, not a date or time"),
        ('name = "x"\nwords = "y"', 2, "an array was expected, not a string"),
        ('name = "x"\nwords = [\n1\n]', 2, "a string was expected, not a whole number"),
        ('name = "x"\ninner = []', 2, "a table was expected, not an array"),
        ('name = "x"\nserver = {}', 2, "a string was expected, not a table"),
        ('name = "x"\nserver = 1.5', 2, "a string was expected, not a number"),
        ('name = "x"\nserver = "nowhere"', 2, "'nowhere' does not appear to be an IPv4 or IPv6 address"),
        ('name = "x"\ninterfaces = ["10.0.0.1"]', 2, "the prefix length is missing"),
        ('name = "x"\nnetworks = ["10.0.0.1/8"]', 2, "10.0.0.1/8 has host bits set"),
        ('name = "x"\naddress = "udp:10.0.0.1:5"', 2, "this address must carry a stream, and UDP carries datagrams"),
        ('name = "x"\n[inner]\nport = 0', 3, "it is outside 1 to 65535"),
        ('name = "x"\n[inner]\nport = 1\nratio = 2', 4, "it is outside 0 to 1"),
        ('name = "x"\n[inner]\nport = 1\nprotocol = "tpc"', 4, 'it must be one of "tcp", "udp"'),
        ('name = "x"\n[inner]\nprotocol = "tcp"', 2, 'the key "port" is missing'),
        ('name = "x"\n[inner]\nport = 666', 2, "it is evil"),
    ],
)
def test_a_wrong_value_names_its_line(text: str, line: int, why: str) -> None:
    error = refused(text)
    assert isinstance(error, InvalidSettingError)
    assert f"file.toml, line {line}: " in error.what
    assert why in error.why
    assert error.fix


def test_a_nearest_value_is_named_too() -> None:
    assert refused('name = "x"\n[inner]\nport = 1\nprotocol = "tpc"').fix == 'the nearest valid value is "tcp"'


def test_a_missing_key_of_the_whole_file_has_no_line() -> None:
    assert refused("").what == "file.toml: cannot use the file"


def test_an_error_that_names_its_place_is_passed_on() -> None:
    assert refused('name = "x"\n[inner]\nport = 667').what == "named already"


def test_no_toml() -> None:
    error = refused("name = ")
    assert isinstance(error, UnreadableConfigurationError)
    assert "file.toml is not TOML" in error.what


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        settings.parse(Outer, text)


@pytest.mark.parametrize(("text", "why"), [("x = " + "[" * 100_000, "nested"), ("x = " + "9" * 5000, "digits")])
def test_toml_that_python_cannot_hold(text: str, why: str) -> None:
    with pytest.raises(UnreadableConfigurationError) as caught:
        settings.parse(Outer, text)
    assert why in caught.value.why


@dataclass(frozen=True, slots=True)
class Renamed:
    new: int = 0

    MOVED: ClassVar[Mapping[str, str]] = {"old": "write new = 1"}


def test_a_key_that_there_was_names_what_took_its_place() -> None:
    with pytest.raises(UnknownKeyError, match='line 2: the key "old" no longer exists') as caught:
        settings.parse(Renamed, "new = 1\nold = 2")
    assert caught.value.fix == "write new = 1"


@dataclass(frozen=True, slots=True)
class Ports:
    publish: tuple[Inner, ...]


def test_a_table_of_ten_thousand_costs_as_little_as_one_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[object] = []
    really = typing.get_type_hints

    def count(schema: object, **keywords: Any) -> Any:
        evaluated.append(schema)
        return really(schema, **keywords)

    monkeypatch.setattr("wgvsock.settings.schema.typing.get_type_hints", count)

    def read(number: int) -> int:
        text = "[[publish]]\nport = 7\n" * number
        return effort(lambda: settings.parse(Ports, text))

    few, many = read(10), read(10_000)
    assert len(evaluated) <= 2  # once for each kind of table, and not for each table
    assert many < 1_100 * few
