"""The uplink, the enclave's parameters, and the relay's end of the tunnel."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, cast

import pytest

from wgvsock.errors import ConfigurationError
from wgvsock.provisioning import TunnelConfig
from wgvsock.relay.enclaves.interface import (
    Uplink,
    confined_versions,
    enclave_hosts,
    find_uplink,
    first_addresses,
    look_at_forwarding,
    make_tunnel_config,
    path_ends,
    refuse_overlap,
    set_up_tunnel,
    tunnel_prefixes,
    warn_of_ipv6,
)
from wgvsock.relay.errors import UplinkError
from wgvsock.relay.sections import DnsSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.facts import Fact
from wgvsock.system.filter.apply import KnownFacts
from wgvsock.system.filter.rules import TUNNEL_GROUP
from wgvsock.system.netlink import Route
from wgvsock.system.resolver import ResolverSettings
from wgvsock.testing.kernel import MemoryKernel

ETH0 = ((4, "eth0"), (6, "eth0"))
BOTH = Uplink(ETH0, 1500, frozenset({4, 6}))


@pytest.fixture
def kernel() -> MemoryKernel:
    return MemoryKernel()


def uplink(kernel: MemoryKernel, configured: str | None = None) -> Uplink:
    return asyncio.run(find_uplink(cast("Any", kernel), configured))


def test_the_default_route_s_interface(kernel: MemoryKernel) -> None:
    kernel.mtus["eth0"] = 9001
    assert uplink(kernel) == Uplink(ETH0, 9001, frozenset({4, 6}))
    assert uplink(kernel).name == "eth0"
    kernel.defaults = {4: "eth0", 6: None}
    assert uplink(kernel).versions == {4}
    kernel.defaults = {4: None, 6: "eth0"}
    assert uplink(kernel).versions == {6}


def test_the_configured_interface(kernel: MemoryKernel) -> None:
    kernel.mtus["eth1"] = 1400
    assert uplink(kernel, "eth1") == Uplink(((4, "eth1"), (6, "eth1")), 1400, frozenset())
    with pytest.raises(NetlinkSetupError):
        uplink(kernel, "eth2")


def test_each_family_has_its_own_way_out(kernel: MemoryKernel) -> None:
    """An IPv6 pod of EKS: `default dev v4if0` and `default via fe80::1 dev eth0`."""
    kernel.mtus |= {"eth0": 9001, "v4if0": 1500}
    kernel.defaults = {4: "v4if0", 6: "eth0"}
    found = uplink(kernel)
    assert found == Uplink(((4, "v4if0"), (6, "eth0")), 1500, frozenset({4, 6}))
    assert found.name == "v4if0, eth0"


UNSET = ("net.ipv6.conf.all.forwarding",)


def test_ipv6_that_cannot_be_forwarded_is_no_way(
    kernel: MemoryKernel, spec: EnclaveSpec, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.barred = UNSET
    found = uplink(kernel)
    assert (set(found.versions), found.unset_sysctls) == ({4}, UNSET)
    assert make_tunnel_config(spec, found, ResolverSettings()).allowed_ips == (ip_network("0.0.0.0/0"),)
    warn_of_ipv6(spec, found)
    assert "the relay is IPv4-only" in caplog.text
    warned = caplog.records[-1].__dict__
    assert "WGV-E051" in str(warned)
    assert UNSET[0] in str(warned)
    caplog.clear()
    four = tuple(address for address in spec.enclave.addresses if address.version == 4)
    warn_of_ipv6(replace(spec, enclave=replace(spec.enclave, addresses=four)), found)
    warn_of_ipv6(spec, BOTH)
    assert not caplog.text


def test_ipv6_that_is_the_only_way_has_to_be_forwarded(kernel: MemoryKernel) -> None:
    kernel.barred = UNSET
    kernel.defaults = {4: None, 6: "eth0"}
    assert uplink(kernel) == Uplink(ETH0, 1500, frozenset({6}))  # and E051 ends the relay


def test_the_first_address_of_a_family(spec: EnclaveSpec) -> None:
    more = replace(
        spec, enclave=replace(spec.enclave, addresses=(*spec.enclave.addresses, ip_interface("10.9.9.9/24")))
    )
    assert first_addresses(more, frozenset({4, 6})) == list(spec.enclave.addresses)
    assert first_addresses(more, frozenset({6})) == [spec.enclave.addresses[1]]


def test_no_uplink(kernel: MemoryKernel) -> None:
    kernel.defaults = {4: None, 6: None}
    with pytest.raises(UplinkError):
        uplink(kernel)


def test_what_the_enclave_is_told(spec: EnclaveSpec) -> None:
    tunnel = make_tunnel_config(spec, BOTH, ResolverSettings())
    assert tunnel.addresses == spec.enclave.addresses
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
    spec: EnclaveSpec, versions: set[int], routes: list[str]
) -> None:
    tunnel = make_tunnel_config(spec, replace(BOTH, versions=frozenset(versions)), ResolverSettings())
    assert [str(network) for network in tunnel.allowed_ips] == routes


def test_a_configured_mtu_and_routes(spec: EnclaveSpec) -> None:
    spec = replace(
        spec,
        interface=replace(spec.interface, mtu=1420),
        enclave=replace(spec.enclave, routes=(ip_network("10.0.0.0/8"),)),
    )
    tunnel = make_tunnel_config(spec, replace(BOTH, mtu=100_000), ResolverSettings())
    assert (tunnel.mtu, tunnel.allowed_ips) == (1420, (ip_network("10.0.0.0/8"),))


def test_the_relay_s_own_resolver_is_copied_as_far_as_it_makes_sense(
    spec: EnclaveSpec, caplog: pytest.LogCaptureFixture
) -> None:
    own = ResolverSettings(
        servers=tuple(map(ip_address, ("127.0.0.53", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))),
        search=("a.b", "-bad-", *(f"s{number}.test" for number in range(9))),
        options=("ndots:5", "debug", "edns0"),
    )
    with caplog.at_level("INFO"):
        tunnel = make_tunnel_config(replace(spec, dns=DnsSettings()), BOTH, own)
    assert [str(server) for server in tunnel.nameservers] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert tunnel.search == ("a.b", "s0.test", "s1.test", "s2.test", "s3.test", "s4.test")
    assert tunnel.resolver_options == ("ndots:5", "edns0")
    assert [message.partition(" in the relay's resolv.conf: ")[0] for message in caplog.messages] == [
        "ignored 127.0.0.53 and 1 more",
        "ignored -bad- and 4 more",
        "ignored debug",
    ]


STUB = ResolverSettings((ip_address("127.0.0.11"),), ("a.b",), ("ndots:5",))


@pytest.mark.parametrize(
    ("dns", "own"),
    [
        (DnsSettings(), STUB),
        (DnsSettings(), replace(STUB, servers=(ip_address("127.0.0.53"), ip_address("::1")))),
        (DnsSettings(servers=(ip_address("127.0.0.53"),)), ResolverSettings(search=("a.b",))),
        (DnsSettings(servers=(ip_address("10.0.0.1"),), forward=True), STUB),
        (DnsSettings(forward=True), ResolverSettings()),
    ],
)
def test_a_relay_that_looks_names_up_gives_its_own_addresses_in_place_of_the_servers(
    spec: EnclaveSpec, caplog: pytest.LogCaptureFixture, dns: DnsSettings, own: ResolverSettings
) -> None:
    tunnel = make_tunnel_config(replace(spec, dns=dns), BOTH, own)
    assert tunnel.nameservers == (ip_address("10.73.0.1"), ip_address("fd73::1"))
    assert tunnel.search == own.search
    assert tunnel.resolver_options == own.options
    assert not caplog.messages


def test_a_resolver_of_thousands_of_bad_values_is_one_line_each(
    spec: EnclaveSpec, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    validate = TunnelConfig.validate

    def counted(tunnel: TunnelConfig) -> None:
        nonlocal tried
        tried += 1
        validate(tunnel)

    monkeypatch.setattr(TunnelConfig, "validate", counted)
    own = ResolverSettings(
        servers=(ip_address("127.0.0.53"),) * 21_308,
        search=("-bad-",) * 21_308,
        options=("ndots:5",) * 21_308,
    )
    make_tunnel_config(replace(spec, dns=DnsSettings(forward=False)), BOTH, own)
    assert [message.partition(" in the relay")[0] for message in caplog.messages] == [
        "ignored 127.0.0.53 and 21307 more",
        "ignored -bad- and 21307 more",
        "ignored ndots:5 and 21299 more",
    ]
    assert tried < 200


def test_what_the_operator_wrote_has_to_be_right(spec: EnclaveSpec) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_tunnel_config(replace(spec, dns=DnsSettings(options=("debug",))), BOTH, ResolverSettings())
    assert caught.value.exit_code == 2
    outside = replace(spec, interface=replace(spec.interface, addresses=(ip_interface("10.9.0.1/24"),)))
    with pytest.raises(ConfigurationError):
        make_tunnel_config(outside, BOTH, ResolverSettings())


def test_the_enclave_is_its_addresses_and_nothing_else(spec: EnclaveSpec) -> None:
    assert enclave_hosts(spec) == (ip_network("10.73.0.2/32"), ip_network("fd73::2/128"))


@pytest.mark.parametrize(
    ("relay", "enclave", "ends"),
    [
        (["10.73.0.1/24", "fd73::1/64"], ["10.73.0.2/24", "fd73::2/64"], ("10.73.0.1", "10.73.0.2")),
        (["fd73::1/64"], ["10.73.0.2/24", "fd73::2/64"], ("fd73::1", "fd73::2")),
        (["10.9.0.1/24", "10.73.0.0/31"], ["10.73.0.1/31"], ("10.73.0.0", "10.73.0.1")),
        (["10.9.0.1/24"], ["10.73.0.1/31"], ("10.9.0.1", "10.73.0.1")),
        (["10.9.0.1/24"], ["fd73::2/64"], None),
    ],
)
def test_the_path_lies_between_addresses_of_one_link(
    spec: EnclaveSpec, relay: list[str], enclave: list[str], ends: tuple[str, str] | None
) -> None:
    spec = replace(
        spec,
        interface=replace(spec.interface, addresses=tuple(map(ip_interface, relay))),
        enclave=replace(spec.enclave, addresses=tuple(map(ip_interface, enclave))),
    )
    assert path_ends(spec) == (None if ends is None else tuple(map(ip_address, ends)))


def test_the_tunnel_is_set_up(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    enclave = replace(spec.enclave, addresses=(*spec.enclave.addresses, ip_interface("10.99.0.2/24")))
    asyncio.run(set_up_tunnel(cast("Any", kernel), replace(spec, enclave=enclave), 1400))
    assert kernel.up == ["wg0"]
    assert kernel.mtus["wg0"] == 1400
    assert kernel.groups["wg0"] == TUNNEL_GROUP
    assert kernel.addresses["wg0"] == list(spec.interface.addresses)
    assert kernel.routes["wg0"] == [Route(ip_network("10.99.0.2/32"))]


def test_a_tunnel_that_is_set_up_needs_no_change(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    assert asyncio.run(set_up_tunnel(cast("Any", kernel), spec, 1400))
    assert not asyncio.run(set_up_tunnel(cast("Any", kernel), spec, 1400))
    kernel.addresses["wg0"] = []
    assert asyncio.run(set_up_tunnel(cast("Any", kernel), spec, 1400))


def overlap(kernel: MemoryKernel, spec: EnclaveSpec, **dns: Any) -> None:
    spec = replace(spec, dns=replace(spec.dns, **dns))
    tunnel = make_tunnel_config(spec, BOTH, ResolverSettings())
    asyncio.run(refuse_overlap(cast("Any", kernel), spec, tunnel))


@pytest.mark.parametrize("address", ["10.73.0.7/16", "10.73.0.200/32", "10.1.2.3/8", "fd73::1234/48"])
def test_a_prefix_that_is_in_use_here_is_refused_by_name(spec: EnclaveSpec, kernel: MemoryKernel, address: str) -> None:
    kernel.addresses |= {"eth0": [ip_interface(address)], "wg0": list(spec.interface.addresses)}
    with pytest.raises(ConfigurationError) as caught:
        overlap(kernel, spec)
    assert "eth0" in caught.value.why


def test_a_prefix_that_nobody_uses(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    kernel.addresses |= {"eth0": [ip_interface("10.72.0.1/16"), ip_interface("fd72::1/16")]}
    kernel.addresses["wg0"] = list(spec.interface.addresses)
    overlap(kernel, spec)
    overlap(kernel, spec, servers=(ip_address("10.73.0.1"),))  # the relay's own end of the tunnel


def test_a_name_server_in_the_tunnel_s_prefix_is_refused(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    with pytest.raises(ConfigurationError, match=r"10\.73\.0\.53"):
        overlap(kernel, spec, servers=(ip_address("10.73.0.53"),))


def test_the_prefixes_of_a_tunnel_are_named_once(spec: EnclaveSpec) -> None:
    tunnel = make_tunnel_config(spec, BOTH, ResolverSettings())
    twice = replace(tunnel, addresses=(*tunnel.addresses, ip_interface("10.73.0.3/24")))
    assert tunnel_prefixes(twice) == (ip_network("10.73.0.0/24"), ip_network("fd73::/64"))


IPV6_ALL = "/proc/sys/net/ipv6/conf/all/forwarding"


def look(kernel: MemoryKernel, spec: EnclaveSpec, uplink: Uplink, known: KnownFacts | None = None) -> dict[str, str]:
    facts = asyncio.run(look_at_forwarding(cast("Any", kernel), spec, uplink, known or KnownFacts()))
    return {fact.target: fact.value for fact in facts}


def test_the_switches_of_both_families(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    assert look(kernel, spec, BOTH) == {"eth0": "0/0", IPV6_ALL: "0"}
    kernel.forwarding = {"eth0", "ipv4", "ipv6"}
    assert look(kernel, spec, BOTH) == {"eth0": "1/1", IPV6_ALL: "1"}


def test_ipv6_is_left_alone_where_the_uplink_has_none(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    assert look(kernel, spec, replace(BOTH, versions=frozenset({4}))) == {"eth0": "0/0"}


def test_ipv4_is_left_alone_where_the_enclave_has_none(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    enclave = replace(spec.enclave, addresses=(ip_interface("fd73::2/64"),))
    assert look(kernel, replace(spec, enclave=enclave), BOTH) == {IPV6_ALL: "0"}


def test_what_a_relay_switched_on_was_off_before(spec: EnclaveSpec, kernel: MemoryKernel) -> None:
    kernel.forwarding = {"eth0", "ipv6"}
    own = KnownFacts(own=(Fact("ipv4_forwarding", "eth0", "0/0"),))
    assert look(kernel, spec, BOTH, own) == {"eth0": "0/0", IPV6_ALL: "1"}
    another = KnownFacts(others=(Fact("sysctl", IPV6_ALL, "0"), Fact("ipv4_forwarding", "eth9", "0/0")))
    assert look(kernel, spec, BOTH, another) == {"eth0": "1/0", IPV6_ALL: "0"}


@pytest.mark.parametrize(
    ("ipv4", "now", "ipv6", "confined"),
    [
        ("0/0", False, "0", {4, 6}),
        ("0/0", True, "0", {6}),  # somebody made the machine a router since then
        ("0/1", True, "1", {4}),  # a router whose uplink was excepted
        ("1/1", True, "0", {6}),
        ("1/1", True, "1", set()),
        ("1/0", False, "1", set()),
    ],
)
def test_each_family_is_confined_by_itself(ipv4: str, now: bool, ipv6: str, confined: set[int]) -> None:
    before = (
        Fact("ipv4_forwarding", "eth0", ipv4),
        Fact("sysctl", IPV6_ALL, ipv6),
        Fact("sysctl", "/proc/sys/net/ipv6/conf/eth0/accept_ra", "0"),
    )
    assert confined_versions(before, forwards_ipv4_now=now) == confined
