"""A policy in TOML: ``[egress]``, ``[[egress.allow]]`` and ``[[egress.deny]]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from wgvsock.addresses import IpNetwork
from wgvsock.egress.names import parse_pattern
from wgvsock.egress.policy import Policy, ProtocolName, Rule
from wgvsock.errors import ConfigurationError
from wgvsock.settings import Between, ConflictingSettingsError

MAX_RULES: Final = 256
"""Allow rules, and as many deny rules. Each rule costs a comparison for every new flow, and a rule with a name also
costs two sets in the kernel."""

MAX_PORTS: Final = 16
"""Ports in one rule. With the maximum of rules and ports, nft takes 3 s of its limit of 10 s."""

_ANY: Final[frozenset[ProtocolName]] = frozenset({"tcp", "udp", "icmp"})


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """``[[egress.allow]]`` or ``[[egress.deny]]``: exactly one of `name`, `network` and `relay`.

    Attributes:
        name: ``www.example.com``, ``*.example.com`` (the names below it) or ``*``. The rule matches the current
            addresses of these names.
        network: The rule matches these addresses, even in a network that is closed by default.
        relay: The rule matches the relay's own machine, including the other containers of its pod.
        protocol: By default ``tcp`` in an allow rule and ``any`` in a deny rule. ``icmp`` means ping.
        ports: Destination ports of TCP and UDP; by default all.
    """

    name: str | None = None
    network: IpNetwork | None = None
    relay: bool = False
    protocol: Literal["tcp", "udp", "icmp", "any"] | None = None
    ports: tuple[Annotated[int, Between(1, 65535)], ...] = ()

    def __post_init__(self) -> None:
        given = sum((self.name is not None, self.network is not None, self.relay))
        if given != 1:
            raise ConfigurationError(
                "cannot use this rule",
                why="it has no target" if not given else "it has more than one target",
                fix='give it exactly one of "name", "network" and "relay = true"',
            )
        if self.name is not None:
            parse_pattern(self.name)
        if self.ports and self.protocol == "icmp":
            raise ConflictingSettingsError(
                'cannot use "ports" here', key=("ports",), why="ICMP has no ports", fix='remove it, or write "tcp"'
            )
        if len(self.ports) > MAX_PORTS:
            raise ConflictingSettingsError(
                'cannot use "ports"', key=("ports",), why=f"a rule has at most {MAX_PORTS}", fix="omit it for all ports"
            )

    def rule(self, position: int, *, allows: bool) -> Rule:
        """The rule for a policy.

        Args:
            position: Position in its list, counted from 1.
            allows: Whether it comes from the list of allow rules.
        """
        protocol = self.protocol or ("tcp" if allows else "any")
        protocols: frozenset[ProtocolName] = _ANY if protocol == "any" else frozenset({protocol})
        return Rule(
            allows=allows,
            position=position,
            # A rule with ports does not mean ping.
            protocols=protocols - {"icmp"} if self.ports else protocols,
            ports=tuple(dict.fromkeys(self.ports)),
            name=None if self.name is None else parse_pattern(self.name),
            network=self.network,
            relay=self.relay,
        )


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """``[egress]``.

    Attributes:
        default: What happens to a flow that no rule matches.
        allow: What is allowed.
        deny: What is denied. A deny rule takes precedence over every allow rule.
    """

    default: Literal["allow", "deny"] = "allow"
    allow: tuple[RuleSettings, ...] = ()
    deny: tuple[RuleSettings, ...] = ()

    def __post_init__(self) -> None:
        for key, rules in (("allow", self.allow), ("deny", self.deny)):
            if len(rules) > MAX_RULES:
                raise ConflictingSettingsError(
                    "there are too many rules",
                    key=(key, MAX_RULES),
                    why=f"the limit is {MAX_RULES}, and there are {len(rules)}",
                    fix="write wider networks, or wildcards",
                )
        for position, rule in enumerate(self.deny):
            if rule.name is not None and self.default == "allow":
                raise ConflictingSettingsError(
                    f'cannot deny the name "{rule.name}"',
                    key=("deny", position, "name"),
                    why='with default = "allow", its addresses can still be reached directly',
                    fix='write default = "deny" and allow what is needed, or deny a network',
                )

    def policy(self) -> Policy:
        """The policy that these settings describe."""
        return Policy(
            allows_by_default=self.default == "allow",
            allow=tuple(rule.rule(position, allows=True) for position, rule in enumerate(self.allow, 1)),
            deny=tuple(rule.rule(position, allows=False) for position, rule in enumerate(self.deny, 1)),
        )


@dataclass(frozen=True, slots=True)
class EgressSettings(PolicySettings):
    """The relay's ``[egress]``: the keys of `PolicySettings`, and limits on the number of flows.

    Attributes:
        max_new_flows: Flows that an enclave may open per second.
        max_flows: Flows that an enclave may have at once, and at most half of the machine's connection tracking table.
            The whole machine shares this table, which usually has 65,536 entries or more.
    """

    max_new_flows: Annotated[int, Between(1, 100_000)] = 1000
    max_flows: Annotated[int, Between(1, 1_000_000)] = 16_384
