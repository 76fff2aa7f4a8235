"""The policy that is measured into the image: what it may contain, and where it applies."""

from __future__ import annotations

import pytest

from wgvsock import settings
from wgvsock.egress.policy import Site
from wgvsock.egress.settings import PolicySettings
from wgvsock.enclave.egress import measured_policy, site_of
from wgvsock.settings import ConflictingSettingsError
from wgvsock.testing.provisioning import TUNNEL_CONFIG


def parse(text: str) -> PolicySettings:
    return settings.parse(PolicySettings, text)


def test_networks_and_the_tunnel_s_gateways_can_be_named() -> None:
    written = parse("""
        default = "deny"
        allow = [{network = "10.20.0.0/16", ports = [443]}, {relay = true, ports = [8080]}]
        deny = [{network = "10.20.66.0/24"}]
    """)
    policy = measured_policy(written)
    assert policy == written.policy()
    assert [rule.key for rule in (*policy.allow, *policy.deny)] == ["allow 1", "allow 2", "deny 1"]


@pytest.mark.parametrize(
    ("rules", "key", "why"),
    [
        (
            'allow = [{network = "10.0.0.0/8"}, {name = "www.lab.test"}]',
            ("allow", 1, "name"),
            "give the name any",
        ),
        ('allow = [{name = "*"}]', ("allow", 0, "name"), "give the name any"),
        ('default = "deny"\ndeny = [{name = "www.lab.test"}]', ("deny", 0, "name"), "give the name any"),
        ("deny = [{relay = true}]", ("deny", 0, "relay"), "inside the tunnel"),
    ],
)
def test_a_rule_that_could_not_be_enforced_is_refused(rules: str, key: tuple[str | int, ...], why: str) -> None:
    with pytest.raises(ConflictingSettingsError) as refused:
        measured_policy(parse(rules))
    assert refused.value.key == key
    assert why in refused.value.why
    assert refused.value.fix


def test_where_it_holds() -> None:
    assert site_of(TUNNEL_CONFIG) == Site(
        relay=frozenset(TUNNEL_CONFIG.gateways), resolvers=frozenset(TUNNEL_CONFIG.nameservers)
    )
