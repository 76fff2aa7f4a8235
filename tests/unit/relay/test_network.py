"""The uplink, what the enclave is told, and the relay's end of the tunnel."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, cast

import pytest

from wgvsock.errors import ConfigurationError
from wgvsock.relay.config import DnsSettings, RelayConfig
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.network import (
    Uplink,
    enable_forwarding,
    enclave_hosts,
    find_uplink,
    make_tunnel_config,
    set_up_tunnel,
)
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.netlink import Route
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.kernel import MemoryKernel

BOTH = Uplink("eth0", 1500, frozenset({4, 6}))


@pytest.fixture
def kernel() -> MemoryKernel:
    return MemoryKernel()


def uplink(kernel: MemoryKernel, configured: str | None = None) -> Uplink:
    return asyncio.run(find_uplink(cast("Any", kernel), configured))


def test_the_default_route_s_interface(kernel: MemoryKernel) -> None:
    kernel.mtus["eth0"] = 9001
    assert uplink(kernel) == Uplink("eth0", 9001, frozenset({4, 6}))
    kernel.defaults = {4: "eth0", 6: None}
    assert uplink(kernel).versions == {4}
    kernel.defaults = {4: None, 6: "eth0"}
    assert uplink(kernel).versions == {6}


def test_the_configured_interface(kernel: MemoryKernel) -> None:
    kernel.mtus["eth1"] = 1400
    assert uplink(kernel, "eth1") == Uplink("eth1", 1400, frozenset())
    with pytest.raises(NetlinkSetupError):
        uplink(kernel, "eth2")


def test_no_uplink(kernel: MemoryKernel) -> None:
    kernel.defaults = {4: None, 6: None}
    with pytest.raises(UplinkError):
        uplink(kernel)


def test_what_the_enclave_is_told(config: RelayConfig) -> None:
    tunnel = make_tunnel_config(config, BOTH, ResolverSettings())
    assert tunnel.addresses == config.enclave.addresses
    assert tunnel.gateways == (ip_address("10.73.0.1"), ip_address("fd73::1"))
    assert tunnel.mtu == 1500
    assert tunnel.allowed_ips == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert tunnel.nameservers == (ip_address("10.96.0.10"),)
    assert tunnel.persistent_keepalive == 25


@pytest.mark.parametrize(
    ("versions", "routes"),
    [({4}, ["0.0.0.0/0"]), ({6}, ["::/0"]), ({4, 6}, ["0.0.0.0/0", "::/0"]), (set(), ["0.0.0.0/0", "::/0"])],
)
def test_default_routes_of_the_families_that_the_uplink_reaches(
    config: RelayConfig, versions: set[int], routes: list[str]
) -> None:
    tunnel = make_tunnel_config(config, replace(BOTH, versions=frozenset(versions)), ResolverSettings())
    assert [str(network) for network in tunnel.allowed_ips] == routes


def test_a_configured_mtu_and_routes(config: RelayConfig) -> None:
    config = replace(
        config,
        interface=replace(config.interface, mtu=1420),
        enclave=replace(config.enclave, routes=(ip_network("10.0.0.0/8"),)),
    )
    tunnel = make_tunnel_config(config, replace(BOTH, mtu=100_000), ResolverSettings())
    assert (tunnel.mtu, tunnel.allowed_ips) == (1420, (ip_network("10.0.0.0/8"),))


def test_the_relay_s_own_resolver_is_copied_as_far_as_it_makes_sense(
    config: RelayConfig, caplog: pytest.LogCaptureFixture
) -> None:
    own = ResolverSettings(
        servers=tuple(map(ip_address, ("127.0.0.53", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))),
        search=("a.b", "-bad-", *(f"s{number}.test" for number in range(9))),
        options=("ndots:5", "debug", "edns0"),
    )
    with caplog.at_level("INFO"):
        tunnel = make_tunnel_config(replace(config, dns=DnsSettings()), BOTH, own)
    assert [str(server) for server in tunnel.nameservers] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert tunnel.search == ("a.b", "s0.test", "s1.test", "s2.test", "s3.test", "s4.test")
    assert tunnel.resolver_options == ("ndots:5", "edns0")
    assert "left 127.0.0.53 of the own resolv.conf out" in caplog.text


def test_what_the_operator_wrote_has_to_be_right(config: RelayConfig) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_tunnel_config(replace(config, dns=DnsSettings(options=("debug",))), BOTH, ResolverSettings())
    assert caught.value.exit_code == 2
    outside = replace(config, interface=replace(config.interface, addresses=(ip_interface("10.9.0.1/24"),)))
    with pytest.raises(ConfigurationError):
        make_tunnel_config(outside, BOTH, ResolverSettings())


def test_the_enclave_is_its_addresses_and_nothing_else(config: RelayConfig) -> None:
    assert enclave_hosts(config) == (ip_network("10.73.0.2/32"), ip_network("fd73::2/128"))


def test_the_tunnel_is_set_up(config: RelayConfig, kernel: MemoryKernel) -> None:
    enclave = replace(config.enclave, addresses=(*config.enclave.addresses, ip_interface("10.99.0.2/24")))
    asyncio.run(set_up_tunnel(cast("Any", kernel), replace(config, enclave=enclave), 1400))
    assert kernel.up == ["wg0"]
    assert kernel.mtus["wg0"] == 1400
    assert kernel.addresses["wg0"] == list(config.interface.addresses)
    assert kernel.routes["wg0"] == [Route(ip_network("10.99.0.2/32"))]


def forwarding(kernel: MemoryKernel, config: RelayConfig, uplink: Uplink) -> bool:
    return asyncio.run(enable_forwarding(cast("Any", kernel), config, uplink))


def test_forwarding_of_both_families(config: RelayConfig, kernel: MemoryKernel) -> None:
    assert forwarding(kernel, config, BOTH) is False
    assert kernel.forwarding == {"wg0", "eth0", "ipv6"}
    assert forwarding(kernel, config, BOTH) is True


def test_ipv6_is_left_alone_where_the_uplink_has_none(config: RelayConfig, kernel: MemoryKernel) -> None:
    kernel.refuses.add("enable_ipv6_forwarding")  # as with a read-only /proc/sys
    forwarding(kernel, config, replace(BOTH, versions=frozenset({4})))
    assert kernel.forwarding == {"wg0", "eth0"}


def test_ipv4_is_left_alone_where_the_enclave_has_none(config: RelayConfig, kernel: MemoryKernel) -> None:
    enclave = replace(config.enclave, addresses=(ip_interface("fd73::2/64"),))
    assert forwarding(kernel, replace(config, enclave=enclave), BOTH) is False
    assert kernel.forwarding == {"ipv6"}
