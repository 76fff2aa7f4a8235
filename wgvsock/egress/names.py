"""Names in a policy, and the addresses that they have for a limited time.

An address is pinned to the name that was asked for, for as long as the answer is valid and a little longer. The
forwarder pins an answer before it passes the answer on, so that no client connects before its rule is in place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from wgvsock.addresses import IpAddress
from wgvsock.errors import ConfigurationError

MIN_TTL: Final = 60.0
"""Shortest pin, in seconds. Load balancers' names have TTLs of seconds, and applications keep answers for longer than
that (a Java virtual machine 30 s, nscd and many HTTP clients a minute)."""

MAX_TTL: Final = 3600.0
"""Longest pin, in seconds. The forwarder lowers an answer's TTL to this value, because an address that a client keeps
for longer would no longer be pinned."""

GRACE: Final = 30.0
"""Seconds added to every pin. They cover the time from the answer to the connection, and let renewals be rare."""

MAX_PINS: Final = 4096
"""Pairs of a name and an address for one enclave: a few hundred names with a dozen addresses each. With a wildcard, the
enclave chooses how many names it asks for. Each pair costs a few hundred bytes here and in the kernel."""

MAX_ANSWER: Final = 256
"""Addresses that one answer may pin, a sixteenth of the table. An answer over TCP could hold thousands."""

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_NAME: Final = 253
_WILDCARD: Final = "*"


def normalized(name: str) -> str:
    """A name in the form used for comparison: lower case, without the trailing dot."""
    return name.lower().removesuffix(".")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """An exact name, ``*.example.com`` (every name below it, but not the name itself) or ``*`` (every name).

    Args:
        text: The pattern in lower case, as `parse_pattern` returns it.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def matches(self, name: str) -> bool:
        """Whether the pattern matches a name, which is given as `normalized` returns it."""
        if not self.text.startswith(_WILDCARD):
            return name == self.text
        return name.endswith(self.text[1:]) and len(name) >= len(self.text)


def parse_pattern(text: str) -> NamePattern:
    """Parse the name in a rule.

    Raises:
        ConfigurationError: The text is neither a name nor a wildcard.
    """
    name = normalized(text)
    labels = name.split(".")
    rest = labels[1:] if labels[0] == _WILDCARD else labels
    if not text.isascii():
        raise _no_name(text, "it contains characters outside ASCII", "write its ASCII form, which begins with xn--")
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in rest):
        raise _no_name(text, "labels have 1 to 63 letters, digits, hyphens or underscores", 'write "www.example.com"')
    if rest and all(label.isdigit() for label in rest):
        raise _no_name(text, "it is an address", 'use "network" instead')
    return NamePattern(name)


def _no_name(text: str, why: str, fix: str) -> ConfigurationError:
    return ConfigurationError(f"cannot use the name {text[:160]!r}", why=why, fix=fix)


@dataclass(frozen=True, slots=True)
class Pin:
    """An address that belongs to a name for a limited time.

    Attributes:
        name: The name that was asked for, not a CNAME in the answer.
        address: An address in the answer.
        until: When the pin ends, in seconds on the caller's clock.
    """

    name: str
    address: IpAddress
    until: float


class Changes(NamedTuple):
    """What changed in the table of pins.

    Attributes:
        made: Addresses that were pinned, or pinned for longer than before.
        forgotten: Addresses that lost a pin because the table was full.
    """

    made: frozenset[IpAddress]
    forgotten: frozenset[IpAddress]


class Pins:
    """The addresses that names have now.

    Renewing a pin extends it and never shortens it. A full table drops the pins that were asked for longest ago, which
    can only close a destination, never open one.

    Args:
        limit: Maximum number of pairs of name and address.
    """

    def __init__(self, limit: int = MAX_PINS) -> None:
        self._limit = limit
        self._until: dict[tuple[str, IpAddress], float] = {}  # ordered by the last request, the latest last
        self._names: dict[IpAddress, set[str]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def pin(self, name: str, found: Iterable[tuple[IpAddress, float]], now: float) -> Changes:
        """Pin the addresses of an answer.

        A pin that already lasts as long as the answer does is left alone. With the grace, a name that is asked for
        every second is thus renewed only twice a minute.

        Args:
            name: The name that was asked for, as `normalized` returns it.
            found: Addresses, each with its TTL in seconds.
            now: Seconds on the caller's clock.
        """
        made: list[Pin] = []
        for address, ttl in found:
            needed = now + min(max(ttl, MIN_TTL), MAX_TTL)
            until = self._until.pop((name, address), None)
            if until is not None:
                self._until[name, address] = until  # moved to the end
            if until is None or until < needed:
                made.append(Pin(name, address, needed + GRACE))
        return self.adopt(made)

    def adopt(self, pins: Iterable[Pin]) -> Changes:
        """Add pins that were made on the same clock."""
        made: set[IpAddress] = set()
        for pin in pins:
            before = self._until.pop((pin.name, pin.address), pin.until)
            self._until[pin.name, pin.address] = max(pin.until, before)
            self._names.setdefault(pin.address, set()).add(pin.name)
            made.add(pin.address)
        most = len(self._until) - self._limit
        forgotten = frozenset(self._forget(key) for key in list(itertools.islice(self._until, max(0, most))))
        return Changes(frozenset(made), forgotten)

    def names(self, address: IpAddress, now: float) -> Iterator[str]:
        """The names that this address is pinned to now."""
        return (name for name in self._names.get(address, ()) if self._until[name, address] > now)

    def of(self, address: IpAddress, now: float) -> list[Pin]:
        """The pins of an address that have not expired."""
        return [Pin(name, address, self._until[name, address]) for name in self.names(address, now)]

    def live(self, now: float) -> list[Pin]:
        """Every pin that has not expired. Expired pins are forgotten."""
        self.keep(lambda pin: pin.until > now)
        return [Pin(*key, until) for key, until in self._until.items()]

    def keep(self, is_wanted: Callable[[Pin], bool]) -> None:
        """Forget every pin that `is_wanted` rejects."""
        for key, until in list(self._until.items()):
            if not is_wanted(Pin(*key, until)):
                self._forget(key)

    def _forget(self, key: tuple[str, IpAddress]) -> IpAddress:
        name, address = key
        del self._until[key]
        names = self._names[address]
        names.remove(name)
        if not names:
            del self._names[address]
        return address
