"""Checks that several configurations share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from wgvsock import settings
from wgvsock.addresses import Cid, HybridVsockAddress, Port, StreamAddress, TcpAddress, UnixAddress, VsockAddress
from wgvsock.errors import ConfigurationError
from wgvsock.settings import InvalidSettingError


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


# Settings that are in each other's way.


@dataclass(frozen=True, slots=True)
class Listeners:
    one: StreamAddress
    other: StreamAddress | None = None

    def __post_init__(self) -> None:
        if self.other is not None:
            settings.check_apart({"one": self.one, "other": self.other})


@dataclass(frozen=True, slots=True)
class Host:
    listeners: Listeners
    name: str = ""


def test_the_line_of_a_conflict_is_that_of_the_second_key() -> None:
    text = 'name = "x"\n\n[listeners]\none = "tcp:0.0.0.0:80"\n# a comment\nother = "tcp:10.0.0.1:80"\n'
    with pytest.raises(InvalidSettingError) as caught:
        settings.parse(Host, text, "x.toml")
    assert caught.value.what == 'x.toml, line 6: cannot use "other"'
    assert caught.value.why == 'tcp:10.0.0.1:80 is taken: "one" is tcp:0.0.0.0:80'
    settings.parse(Host, text.replace("10.0.0.1:80", "10.0.0.1:81"))
