"""Reads from the tools' output how many rules there are, what they counted and which destinations they denied."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from wgvsock.addresses import IpAddress
from wgvsock.egress.policy import ICMP, TCP, UDP
from wgvsock.system.filter.nft_egress import DENIED_TIMEOUT, PINNED_COMMENT, denied_set
from wgvsock.system.filter.rules import HeldPin

_COUNTED: Final = re.compile(r'counter packets (\d+) bytes \d+ (?:goto \S+|drop) comment "([^"]+)"')
_SAVED: Final = re.compile(r'^\[(\d+):\d+\] -A (\S+) .*--comment ("[^"]+"|\S+)', re.MULTILINE)
_SET: Final = re.compile(r"set (\S+) \{(.*?)\n\t\}", re.DOTALL)
_DENIED: Final = re.compile(
    r"([0-9a-f.:]+) \. ([0-9a-z-]+)(?: \. ([0-9]+))? counter packets (\d+) bytes \d+"
    r"(?: timeout \S+)? expires (\S+?)[,\s]"
)
_PINNED: Final = re.compile(rf'([0-9a-f.:]+) timeout \S+ expires (\S+) comment "{PINNED_COMMENT} ([a-z0-9._-]+)"')
_SPAN: Final = re.compile(r"(\d+)(ms|[dhms])")
_UNITS: Final = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PROTOCOLS: Final = {"tcp": TCP, "udp": UDP, "icmp": ICMP[4], "ipv6-icmp": ICMP[6], "icmpv6": ICMP[6]}


@dataclass(frozen=True, slots=True)
class Denied:
    """A destination that was denied.

    Attributes:
        address: The address, as the enclave wrote it.
        protocol: IP protocol number.
        port: TCP or UDP port, 0 for other protocols.
        count: Packets since the destination was noted.
        age: Seconds since the last of them.
    """

    address: IpAddress
    protocol: int
    port: int
    count: int
    age: float


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rules have counted since they were applied.

    Attributes:
        generation: Changes when other rules are applied and counting restarts.
        counts: First packets of flows, by the key of their rule or reason.
        denied: Denied destinations. Empty if the tool keeps none.
    """

    generation: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    denied: tuple[Denied, ...] = ()


def nft_counts(listing: str) -> Counter[str]:
    """Packets by comment, from ``nft list table``."""
    counts: Counter[str] = Counter()
    for packets, key in _COUNTED.findall(listing):
        counts[key] += int(packets)
    return counts


def iptables_counts(listing: str, chains: Iterable[str]) -> Counter[str]:
    """Packets by comment in these chains, from ``iptables-save -c``."""
    own = set(chains)
    counts: Counter[str] = Counter()
    for packets, chain, key in _SAVED.findall(listing):
        if chain in own:
            counts[key.strip('"')] += int(packets)
    return counts


def nft_denied(listing: str) -> dict[str, tuple[Denied, ...]]:
    """The denied destinations by the name of their set, from ``nft list table``."""
    names = {denied_set(version, ports=ports) for version in (4, 6) for ports in (True, False)}
    return {name: tuple(_denied(body)) for name, body in _SET.findall(listing) if name in names}


def nft_pins(listing: str) -> Iterator[HeldPin]:
    """The pinned addresses in the sets, from ``nft list table``."""
    for address, left, name in _PINNED.findall(listing):
        with contextlib.suppress(ValueError):  # not a valid address
            yield HeldPin(name, ip_address(address), _seconds(left))


def _denied(body: str) -> Iterator[Denied]:
    for address, protocol, port, count, left in _DENIED.findall(body):
        with contextlib.suppress(ValueError):  # a version of nft with another output format
            number = _PROTOCOLS[protocol] if protocol in _PROTOCOLS else int(protocol)
            age = max(0.0, DENIED_TIMEOUT - _seconds(left))
            yield Denied(ip_address(address), number, int(port or 0), int(count), age)


def _seconds(span: str) -> float:
    """The seconds in a time as nft writes it, such as ``4m59s996ms``."""
    return sum(int(number) * _UNITS[unit] for number, unit in _SPAN.findall(span))


def rules_in(backend: str, text: str) -> int:
    """Number of rules in a text, as rendered for the tool or as listed by it."""
    if backend != "nft":
        return sum(line.startswith("-A ") for line in text.splitlines())
    count, in_chain = 0, False
    for line in text.splitlines():
        match line.split():
            case ["chain", *_]:
                in_chain = True
            case ["}"]:
                in_chain = False
            case [word, *_] if in_chain and word != "type":
                count += 1
    return count
