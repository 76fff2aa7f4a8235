"""Strict TOML: what a schema accepts, what it refuses, and at which line."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock import settings
from wgvsock.addresses import (
    Cid,
    HybridVsockAddress,
    Port,
    StreamAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from wgvsock.errors import ConfigurationError
from wgvsock.settings import (
    Between,
    InvalidSettingError,
    IpAddress,
    IpInterface,
    IpNetwork,
    UnknownKeyError,
    UnreadableConfigurationError,
)


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


def test_what_is_written_reads_back_the_same() -> None:
    value = settings.parse(Outer, COMPLETE)
    assert settings.parse(Outer, settings.format_toml(value)) == value


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=30), st.floats(0, 1))
def test_any_text_and_number_reads_back_the_same(text: str, ratio: float) -> None:
    value = Outer(text, words=(text, "x"), seconds=ratio, inner=Inner(1, ratio=ratio))
    assert settings.parse(Outer, settings.format_toml(value)) == value


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
        ('name = "x"\naddress = "udp:10.0.0.1:5"', 2, "a stream is needed here, and UDP carries none"),
        ('name = "x"\n[inner]\nport = 0', 3, "it lies outside 1 to 65535"),
        ('name = "x"\n[inner]\nport = 1\nratio = 2', 4, "it lies outside 0 to 1"),
        ('name = "x"\n[inner]\nport = 1\nprotocol = "tpc"', 4, 'it is one of "tcp", "udp"'),
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
    assert "file.toml is no TOML" in error.what


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(COMPLETE)
    assert settings.read(Outer, str(path)).name == 'a "name"'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"name = '\xff'", "byte 8 is not UTF-8"),
        (b"#" * (settings.MAX_CONFIGURATION_BYTES + 1), "it is longer than"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableConfigurationError) as caught:
        settings.read(Outer, str(path))
    assert why in caught.value.why
    assert caught.value.exit_code == 2


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        settings.parse(Outer, text)


def test_the_next_port() -> None:
    assert settings.next_port(VsockAddress(Cid(3), Port(5)), "k") == VsockAddress(Cid(3), Port(6))
    assert settings.next_port(HybridVsockAddress("/v", Port(5)), "k") == HybridVsockAddress("/v", Port(6))
    assert settings.next_port(TcpAddress("::1", Port(5)), "k") == TcpAddress("::1", Port(6))
    with pytest.raises(ConfigurationError, match='"k" is missing'):
        settings.next_port(UnixAddress("/v"), "k")


@pytest.mark.parametrize("name", ["wg0", "eth0.100", "a" * 15])
def test_interface_names(name: str) -> None:
    settings.check_interface_name(name)


@pytest.mark.parametrize("name", ["", "a" * 16, "-x", "w g", 'w"', "a/b", "wg0\n"])
def test_names_that_neither_kernel_nor_nft_would_take(name: str) -> None:
    with pytest.raises(ConfigurationError):
        settings.check_interface_name(name)


def test_service_names() -> None:
    settings.check_service_name("relay-1.a_b")
    for name in ("", "../x", "a/b", "a" * 65):
        with pytest.raises(ConfigurationError):
            settings.check_service_name(name)
