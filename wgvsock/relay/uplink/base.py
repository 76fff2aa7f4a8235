"""The state of an uplink of either kind, as the rest of the relay sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from wgvsock.errors import WgvsockError


@dataclass(frozen=True, slots=True)
class RuleCount:
    """A rule of the policy and its count.

    Attributes:
        key: Identifies the rule, such as ``allow 1``.
        text: The rule as text for people.
        flows: Number of flows that it matched.
    """

    key: str
    text: str
    flows: int


@dataclass(frozen=True, slots=True)
class DeniedDestination:
    """A destination that the enclave tried to reach and that was denied.

    Attributes:
        address: The destination address as the enclave wrote it.
        protocol: ``tcp``, ``udp``, ``icmp``, or a number.
        port: Destination port of TCP and UDP.
        count: Number of packets; a TCP connection counts as one.
        first: Seconds since the first packet.
        last: Seconds since the last packet.
        name: The name for which the enclave was told this address; None if there was none.
        by: The verdict of the present policy.
    """

    address: str
    protocol: str
    port: int | None
    count: int
    first: float
    last: float
    name: str | None
    by: str


@dataclass(frozen=True, slots=True)
class RefusedName:
    """A name for which the enclave got no answer, or not all addresses.

    Attributes:
        name: The name.
        count: Number of queries.
        last: Seconds since the last query.
        withheld: Addresses that were withheld from its last answer; empty if the name itself is not allowed.
    """

    name: str
    count: int
    last: float
    withheld: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EgressSnapshot:
    """What an enclave may reach, and what it tried to reach.

    Attributes:
        default: What happens to flows that no rule matches: ``allow`` or ``deny``.
        rules: The rules, deny rules first.
        others: Number of flows by reasons other than a rule (`wgvsock.egress.verdict.Reason`, and the filter's
            `Crowd`).
        pins: The pinned addresses: the name, the address, and the seconds that the pin has left.
        denied: The denied destinations, the latest first.
        refused: The refused names, the latest first.
        names_refused: Number of queries for names that are not allowed.
        addresses_withheld: Number of addresses that were removed from answers.
    """

    default: str
    rules: tuple[RuleCount, ...]
    others: Mapping[str, int]
    pins: tuple[tuple[str, str, float], ...]
    denied: tuple[DeniedDestination, ...]
    refused: tuple[RefusedName, ...]
    names_refused: int
    addresses_withheld: int


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The process of a user-space uplink.

    Attributes:
        running: Whether an engine runs now. There is none while the uplink is closed.
        pid: Its process ID.
        version: Version of libslirp.
        restarts: How often it ended unexpectedly.
        connections: Number of sockets for the enclave's flows.
        max_connections: Maximum number of these sockets.
        crowded: Number of packets refused because that limit was reached.
        dropped: Number of packets for the enclave that the relay did not take in time.
        odd: Number of packets from the enclave that it does not carry, such as fragments.
        resident: Resident memory in bytes.
        sandbox_missing: The restrictions that could not be applied, by name.
    """

    running: bool
    pid: int | None
    version: str
    restarts: int
    connections: int
    max_connections: int
    crowded: int
    dropped: int
    odd: int
    resident: int
    sandbox_missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UplinkSnapshot:
    """The uplink of one enclave, as of the last check.

    Attributes:
        is_open: Whether packets may pass.
        owner: Identifies its rules.
        backend: What implements it: ``nft``, ``iptables`` or ``userspace``.
        interfaces: The uplink's interfaces, for people.
        mtu: MTU of the tunnel, in bytes.
        published: Ports that are forwarded to the enclave now, such as ``tcp:443->198.18.73.3:8443``.
        repairs: Number of repaired changes of other programs, by kind.
        deleted_flows: Number of deleted flows that contradicted the rules, by kind (`wgvsock.system.flows`).
        contested: The kinds of change that another program repeats after each repair.
        problem: What is wrong with this machine and cannot be repaired; None if nothing is.
        egress: What the enclave may reach.
        unset_sysctls: The sysctls that have to be set from outside before IPv6 is forwarded.
        engine: The engine's process; None if the kernel is used.
    """

    is_open: bool
    owner: str
    backend: str
    interfaces: str
    mtu: int
    published: tuple[str, ...]
    repairs: Counter[str]
    deleted_flows: Counter[str]
    contested: tuple[str, ...]
    problem: WgvsockError | None
    egress: EgressSnapshot
    unset_sysctls: tuple[str, ...] = ()
    engine: EngineSnapshot | None = None
