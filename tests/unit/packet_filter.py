"""A ruleset with everything in it: two families, two uplinks, published ports, exceptions."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from wgvsock.egress.settings import PolicySettings, RuleSettings
from wgvsock.system.facts import Fact
from wgvsock.system.filter.rules import PublishedPort, Ruleset

RULES = Ruleset(
    owner="relay",
    tunnel="wg0",
    uplinks=((4, "eth0"), (6, "eth1")),
    sources=(ip_network("10.73.0.0/24"), ip_network("fd73::/64")),
    published=(
        PublishedPort("tcp", 443, ip_address("10.73.0.2"), 8443),
        PublishedPort("udp", 53, ip_address("fd73::2"), 53),
    ),
    policy=PolicySettings(allow=(RuleSettings(network=ip_network("169.254.169.123/32"), protocol="any"),)).policy(),
    resolvers=(ip_address("169.254.20.10"),),
    relay=(ip_address("10.73.0.1"), ip_address("fd73:1::1")),
    confined=frozenset({4, 6}),
    before=(Fact("ipv4_forwarding", "eth0", "0/0"),),
)
