"""The egress policy that is measured into the image: what its rules may say, and what they apply to.

The enclave can judge packets, addresses and ports by itself. It cannot judge names, because the relay answers its DNS
queries: the party that the policy binds must not decide what the policy means. A rule for a name is therefore refused
here and belongs in the relay's policy. So does a rule that denies the relay's own addresses: the enclave knows only
those inside the tunnel.
"""

from __future__ import annotations

from wgvsock.egress.policy import Policy, Site
from wgvsock.egress.settings import PolicySettings, RuleSettings
from wgvsock.provisioning import TunnelConfig
from wgvsock.settings import ConflictingSettingsError


def measured_policy(settings: PolicySettings) -> Policy:
    """The policy of ``[egress]`` in ``enclave.toml``.

    Raises:
        ConflictingSettingsError: A rule cannot be enforced in an enclave. The error's key is relative to the table.
    """
    for key, rules in (("allow", settings.allow), ("deny", settings.deny)):
        for position, rule in enumerate(rules):
            _check(rule, key, position)
    return settings.policy()


def _check(rule: RuleSettings, key: str, position: int) -> None:
    if rule.name is not None:
        raise ConflictingSettingsError(
            f'cannot use the name "{rule.name}" in a measured policy',
            key=(key, position, "name"),
            why="the relay answers the enclave's DNS queries, and could give the name any address",
            fix="write networks here, and the name in the relay's own [egress]",
        )
    if rule.relay and key == "deny":
        raise ConflictingSettingsError(
            "cannot deny the relay's machine in a measured policy",
            key=(key, position, "relay"),
            why="the enclave knows only the relay's addresses inside the tunnel",
            fix='write default = "deny", or deny the networks of the relay\'s machine',
        )


def site_of(config: TunnelConfig) -> Site:
    """What the policy applies to: the tunnel's gateways are the relay, and the relay assigns the name servers."""
    return Site(relay=frozenset(config.gateways), resolvers=frozenset(config.nameservers))
