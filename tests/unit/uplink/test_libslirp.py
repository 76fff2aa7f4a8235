"""The binding of libslirp. The stack's behaviour is tested with the engine."""

from __future__ import annotations

import ctypes
from ipaddress import IPv4Address, IPv6Address

import pytest

from wgvsock.uplink import libslirp
from wgvsock.uplink.errors import EngineMissingError
from wgvsock.uplink.libslirp import Gateway, Slirp
from wgvsock.uplink.orders import network_of_relay


def make(gateway: Gateway, library: str = libslirp.LIBRARY) -> Slirp:
    def ignore(*_: int) -> None:
        pass

    def wait_for(fd: int, _events: int, _opaque: int | None) -> int:
        return fd

    try:
        return Slirp(
            gateway, send=ignore, opened=ignore, closed=ignore, wait_for=wait_for, clock=lambda: 0, library=library
        )
    except EngineMissingError as error:
        if library == libslirp.LIBRARY and "refuses" not in error.why:
            pytest.skip(f"{error}: {error.fix}")
        raise


def test_the_structure_is_that_of_c() -> None:
    """The offsets that gcc gives the fields of SlirpConfig on a 64-bit machine."""
    config = libslirp._Config
    assert [getattr(config, name).offset for name in ("vhost", "in6_enabled", "vprefix_addr6", "vprefix_len")] == [
        20,
        24,
        28,
        44,
    ]
    assert [getattr(config, name).offset for name in ("vhost6", "vhostname", "vdhcp_start", "vnameserver6")] == [
        48,
        64,
        96,
        104,
    ]
    assert [getattr(config, name).offset for name in ("vdnssearch", "if_mtu", "disable_dns")] == [120, 136, 176]


def test_only_the_gateway_is_this_machine() -> None:
    config = libslirp._config(Gateway(IPv4Address("10.73.0.1"), IPv6Address("fd73::1")))
    network = network_of_relay(IPv4Address("10.73.0.1"))
    assert config.vnetmask == libslirp._word(network.netmask)
    assert config.vnetwork == libslirp._word(network.network_address)
    assert (config.vhost, config.vprefix_len) == (libslirp._word(IPv4Address("10.73.0.1")), 128)
    assert bytes(config.vprefix_addr6) == bytes(config.vhost6) == IPv6Address("fd73::1").packed
    assert (config.in_enabled, config.in6_enabled, config.enable_emu) == (True, True, False)
    assert not libslirp._config(Gateway(None, IPv6Address("fd73::1"))).in_enabled
    assert not libslirp._config(Gateway(IPv4Address("10.73.0.1"), None)).in6_enabled


@pytest.mark.parametrize("name", ["libslirp-no-such-library.so", "libc.so.6"])
def test_another_library_is_none(name: str) -> None:
    with pytest.raises(EngineMissingError, match="cannot use libslirp"):
        libslirp.load(name)


def test_a_stack_begins_and_ends() -> None:
    stack = make(Gateway(IPv4Address("10.73.0.1"), None))
    assert stack.version.startswith("4.")
    assert stack.fill(50) <= 50
    stack.poll({})
    stack.close()
    stack.close()


def test_a_configuration_that_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    make(Gateway(None, None)).close()
    monkeypatch.setattr(libslirp, "CONFIG_VERSION", 0)
    with pytest.raises(EngineMissingError, match="refuses its configuration"):
        make(Gateway(None, None))


def test_a_guests_mistakes_are_counted() -> None:
    stack = make(Gateway(IPv4Address("10.73.0.1"), None))
    stack._callbacks.guest_error(b"a mistake", None)
    assert stack.complaints == 1
    stack.close()


def test_addresses_as_c_has_them() -> None:
    assert ctypes.sizeof(libslirp._In6Addr) == 16
    assert libslirp._sockaddr(IPv4Address("10.73.0.2"), 443)[2:8] == b"\x01\xbb\x0a\x49\x00\x02"
    assert len(libslirp._sockaddr(IPv4Address("10.73.0.2"), 443)) == 16
    assert len(libslirp._sockaddr(IPv6Address("fd73::2"), 443)) == 28
