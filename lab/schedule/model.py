"""What a Relay may show during and after a fault, and what the traffic may suffer. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lab.schedule.faults import Flow, Readiness, Traits

NOTICED: Final = 2.0
"""Seconds within which a fault is repaired, or reported."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a Relay reported about one enclave.

    Attributes:
        answers: Whether it answered.
        ready: Whether packets may pass.
        failing: The conditions that do not hold.
        contested: What another program keeps undoing. It is then repaired less often, and the Relay says so.
    """

    answers: bool
    ready: bool = False
    failing: frozenset[str] = frozenset()
    contested: bool = False

    def __str__(self) -> str:
        if not self.answers:
            return "gone"
        contested = "contested " if self.contested else ""
        return contested + ("ready" if self.ready else f"unready({','.join(sorted(self.failing)) or '?'})")


GONE: Final = Seen(answers=False)


def enclaves_in(status: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what a status says about each enclave."""
    rooms: Sequence[Mapping[str, Any]] = status.get("enclaves") or [status]
    return rooms


def see(status: Mapping[str, Any] | None, enclave: str | None = None) -> Seen:
    """Return what a status says about an enclave, by default the only one."""
    if status is None:
        return GONE
    rooms = enclaves_in(status)
    if enclave is not None:
        rooms = [entry for entry in rooms if entry["name"] == enclave]
    room: Mapping[str, Any] = rooms[0] if rooms else {"ready": False}
    conditions: Mapping[str, Any] = room.get("conditions", {})
    failing = frozenset(name for name, holds in conditions.items() if holds is False)
    contested = bool((room.get("nat") or {}).get("contested"))
    return Seen(answers=True, ready=bool(room["ready"]), failing=failing, contested=contested)


def allows(traits: Iterable[Traits], seen: Seen) -> bool:
    """Return whether a Relay may look like that while these faults are active."""
    rows = list(traits)
    if not seen.answers:
        return any(row.gone for row in rows)
    if seen.ready:
        return not seen.failing
    if not seen.failing or all(row.readiness is Readiness.KEEPS for row in rows):
        return False
    return seen.failing <= frozenset().union(*(row.reasons for row in rows))


def may_cut(traits: Iterable[Traits]) -> frozenset[Flow]:
    """Return the flows that may be cut."""
    return frozenset().union(*(row.cuts for row in traits))


@dataclass(frozen=True, slots=True)
class Request:
    """A connection that was opened to be used once, and failed. Times as in `Account`."""

    begin: float
    end: float
    what: str


@dataclass(frozen=True, slots=True)
class Account:
    """What was seen of one step. Times are Unix seconds.

    Attributes:
        struck: When the fault was injected.
        mended: When its last lasting effect was ended.
        right: When the Relay was ready and all traffic continued. None: never.
        looks: What the Relay reported, and when, in order.
        cut: Flows that were cut.
        failed: Connections that were refused.
        bare: Times at which a packet of the enclave's was seen where it must not be.
    """

    struck: float
    mended: float
    right: float | None
    looks: tuple[tuple[float, Seen], ...]
    cut: frozenset[Flow] = frozenset()
    failed: tuple[Request, ...] = ()
    bare: tuple[float, ...] = ()


def complaints(traits: Sequence[Traits], account: Account) -> list[str]:
    """Return what was not as required for one enclave. Empty if everything was.

    Args:
        traits: Of everything that may have affected it.
        account: What was seen.
    """
    return [
        *_about_readiness(traits, account),
        *_about_flows(traits, account),
        *_about_requests(traits, account),
        *_about_bare_packets(account),
    ]


def _about_readiness(traits: Sequence[Traits], account: Account) -> list[str]:
    found = []
    if account.right is None:
        last = account.looks[-1][1] if account.looks else GONE
        found.append(f"not right again: the Relay is {last}")
    strange = dict.fromkeys(seen for _, seen in account.looks if not allows(traits, seen))
    found += [f"the Relay was {seen}, which nothing explains" for seen in strange]
    if any(row.readiness is Readiness.LOSES for row in traits):
        during = [seen for when, seen in account.looks if account.struck <= when <= account.mended]
        if all(seen.ready for seen in during):
            found.append("the Relay never said that it is not ready")
    return found


def _about_flows(traits: Sequence[Traits], account: Account) -> list[str]:
    return [f"cut: {flow}" for flow in sorted(account.cut - may_cut(traits))]


def _about_requests(traits: Sequence[Traits], account: Account) -> list[str]:
    if not any(row.gap for row in traits):
        return [f"refused: {request.what}" for request in account.failed]
    found = []
    end = account.right if account.right is not None else float("inf")
    silent = any(row.silent for row in traits)
    for request in account.failed:
        if request.begin > end or request.end < account.struck:
            found.append(f"refused outside of a fault: {request.what}")
        elif not silent and request.begin > account.mended + NOTICED and _ready_throughout(request, account):
            found.append(f"refused while the Relay said ready: {request.what}")
    return found


def _ready_throughout(request: Request, account: Account) -> bool:
    """Return whether every look from the fault's end to the request's said ready, and reported no contest."""
    looks = [seen for when, seen in account.looks if account.mended <= when <= request.end]
    return bool(looks) and all(seen.ready and not seen.contested for seen in looks)


def _about_bare_packets(account: Account) -> list[str]:
    return [f"{len(account.bare)} packets of the enclave's in clear"] if account.bare else []
