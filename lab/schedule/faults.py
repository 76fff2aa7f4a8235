"""The faults that can be injected into a laboratory, and what each of them may cost. A table, no I/O.

A fault affects one enclave's stream, agent or image, the Relay, or the machine that they share. `TRAITS` says which
connection it may cut and why, what the Relay may report meanwhile, and whether a client that connects in that moment
may be refused. Whatever is not in the table's row must not happen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final


class Fault(StrEnum):
    """One kind of fault."""

    RELAY_KILLED = "relay killed"
    RELAY_STOPPED = "relay stopped and started"
    RELAY_RESTARTED = "relay restarted (SIGUSR2)"
    RELAY_FROZEN = "relay frozen"
    REATTESTED = "attested again"
    PORTS_RELOADED = "reload: published ports"
    NAMES_RELOADED = "reload: DNS"
    MTU_RELOADED = "reload: MTU"
    RELOADED_BROKEN = "reload: broken file"
    MODULE_FAILS = "security module fails"
    MODULE_DEBUG = "enclave in debug mode"
    IMAGE_REPLACED = "image replaced"
    AGENT_KILLED = "enclave killed"
    AGENT_RESTARTED = "enclave restarted"
    AGENT_FROZEN = "enclave frozen"
    STREAM_CUT = "stream cut"
    STREAM_REFUSED = "stream refused"
    STREAM_STALLED = "stream stalled"
    STREAM_HELD = "stream held"
    STREAM_SLOW = "stream slow"
    LENGTH_FLIPPED = "bit flipped: length"
    PAYLOAD_FLIPPED = "bit flipped: payload"
    EXCHANGE_FLIPPED = "bit flipped: exchange"
    RULES_FLUSHED = "nft flush ruleset"
    TABLE_DELETED = "our table deleted"
    FILTER_EMPTIED = "our forward chain emptied"
    TRANSLATION_EMPTIED = "our translation emptied"
    RULE_INSERTED = "a drop inserted"
    FOREIGN_TABLE = "somebody else's table"
    FORWARDING_OFF = "IPv4 forwarding off"
    FORWARDING6_OFF = "IPv6 forwarding off"
    UPLINK_FORWARDING_OFF = "the uplink's forwarding off"
    TUNNEL_FORWARDING_OFF = "the tunnel's forwarding off"
    ADDRESSES_FLUSHED = "tunnel's addresses flushed"
    ADDRESS_GONE = "one tunnel address gone"
    TUNNEL_DOWN = "tunnel down"
    TUNNEL_BOUNCED = "tunnel down and up"
    TUNNEL_MTU = "tunnel's MTU changed"
    UPLINK_ADDRESS = "uplink has another address"
    ROUTE_GONE = "default routes gone"
    ENGINE_KILLED = "engine killed"


class Target(Enum):
    """What a fault affects."""

    RELAY = "relay"
    AGENT = "agent"
    IMAGE = "image"
    MODULE = "module"
    STREAM = "stream"
    MACHINE = "machine"
    ENGINE = "engine"


class Flow(StrEnum):
    """Connections that the traffic keeps open, by protocol and the side that opened them."""

    EGRESS_TCP = "egress tcp"
    PUBLISHED_TCP = "published tcp"
    EGRESS_UDP = "egress udp"
    PUBLISHED_UDP = "published udp"


class Readiness(Enum):
    """Whether a fault takes readiness away."""

    KEEPS = "the Relay stays ready"
    MAY_LOSE = "the Relay may be unready meanwhile"
    LOSES = "the Relay has to be unready before the fault ends"


@dataclass(frozen=True, slots=True)
class Traits:
    """The allowed effects of one fault.

    Attributes:
        target: What it affects.
        readiness: Its effect on readiness.
        reasons: Conditions that may fail while it lasts. The Relay has to name one if it is not ready.
        gone: Whether the Relay may not answer.
        gap: Whether clients that connect meanwhile may be refused.
        silent: Whether nothing can notice within the fault's time that nothing passes, because the path seems intact.
        seconds: How long it lasts before it is ended. 0: it ends at once.
        takes: How much longer than others it may take until all is well.
        cuts: Flows that it may cut.
        why: Why these cannot be saved.
        alone: Whether it affects one enclave only, so that its neighbours must not notice.
    """

    target: Target
    readiness: Readiness = Readiness.MAY_LOSE
    reasons: frozenset[str] = frozenset()
    gone: bool = False
    gap: bool = True
    silent: bool = False
    seconds: float = 0.0
    takes: float = 0.0
    cuts: frozenset[Flow] = frozenset()
    why: str = ""
    alone: bool = False

    @property
    def lasts(self) -> bool:
        """Whether something has to be done to end it."""
        return self.seconds > 0


_TRUST: Final = frozenset({"attested", "handshake", "rules", "path", "application"})
"""What fails without the enclave: forwarding is closed with it, and nothing has reported yet that the application is
ready.
"""
_MACHINE: Final = frozenset({"rules", "forwarding", "uplink", "path", "contested"})
_BOTH_TCP: Final = frozenset({Flow.EGRESS_TCP, Flow.PUBLISHED_TCP})
_APPLICATION: Final = frozenset({Flow.PUBLISHED_TCP})

_DRAINED: Final = "connections that do not end on their own are cut at the drain's deadline"
_NO_TRANSLATION: Final = "without rules the pod's kernel answers in the enclave's place, with a reset"
_APPLICATION_ENDS: Final = "the application ends with its agent, as in an enclave that ends"


def _relay(**more: object) -> Traits:
    return Traits(Target.RELAY, reasons=_TRUST | _MACHINE, gone=True, **more)  # type: ignore[arg-type]


def _order(**more: object) -> Traits:
    return Traits(Target.RELAY, readiness=Readiness.KEEPS, gap=False, **more)  # type: ignore[arg-type]


def _stream(**more: object) -> Traits:
    return Traits(Target.STREAM, reasons=_TRUST, alone=True, **more)  # type: ignore[arg-type]


def _machine(**more: object) -> Traits:
    return Traits(Target.MACHINE, reasons=_MACHINE, **more)  # type: ignore[arg-type]


TRAITS: Final[dict[Fault, Traits]] = {
    Fault.RELAY_KILLED: _relay(),
    Fault.RELAY_STOPPED: _relay(cuts=_BOTH_TCP, why=_NO_TRANSLATION),
    Fault.RELAY_RESTARTED: _relay(),
    Fault.RELAY_FROZEN: _relay(seconds=2.0, silent=True),
    Fault.REATTESTED: _order(),
    Fault.PORTS_RELOADED: _order(),
    Fault.NAMES_RELOADED: _order(),
    Fault.MTU_RELOADED: _order(),
    Fault.RELOADED_BROKEN: _order(),
    Fault.MODULE_FAILS: Traits(Target.MODULE, alone=True, readiness=Readiness.KEEPS, gap=False, seconds=1.5),
    Fault.MODULE_DEBUG: Traits(Target.MODULE, alone=True, readiness=Readiness.LOSES, reasons=_TRUST, seconds=1.5),
    Fault.IMAGE_REPLACED: Traits(
        Target.IMAGE,
        alone=True,
        gap=False,
        reasons=frozenset({"path"}),
        seconds=1.5,
        takes=35.0,  # a launch, an attestation, the drain, and an end, on a busy machine
        cuts=_APPLICATION,
        why=_DRAINED,
    ),
    Fault.AGENT_KILLED: Traits(Target.AGENT, alone=True, reasons=_TRUST, cuts=_APPLICATION, why=_APPLICATION_ENDS),
    Fault.AGENT_RESTARTED: Traits(Target.AGENT, alone=True, reasons=_TRUST, cuts=_APPLICATION, why=_APPLICATION_ENDS),
    Fault.AGENT_FROZEN: Traits(Target.AGENT, alone=True, reasons=_TRUST, seconds=2.0, silent=True),
    Fault.STREAM_CUT: _stream(),
    Fault.STREAM_REFUSED: _stream(seconds=2.0),
    Fault.STREAM_STALLED: _stream(seconds=2.0, silent=True),
    Fault.STREAM_HELD: _stream(seconds=2.0, silent=True),
    Fault.STREAM_SLOW: _stream(seconds=2.0, silent=True),
    Fault.LENGTH_FLIPPED: _stream(silent=True),
    Fault.PAYLOAD_FLIPPED: _stream(silent=True),
    Fault.EXCHANGE_FLIPPED: Traits(Target.STREAM, alone=True, readiness=Readiness.KEEPS, gap=False, seconds=0.5),
    Fault.RULES_FLUSHED: _machine(cuts=_BOTH_TCP, why=_NO_TRANSLATION),
    Fault.TABLE_DELETED: _machine(alone=True, cuts=_BOTH_TCP, why=_NO_TRANSLATION),
    Fault.FILTER_EMPTIED: _machine(alone=True),
    Fault.TRANSLATION_EMPTIED: _machine(alone=True),
    Fault.RULE_INSERTED: _machine(),
    Fault.FOREIGN_TABLE: _machine(readiness=Readiness.KEEPS, gap=False, seconds=0.5),
    Fault.FORWARDING_OFF: _machine(),
    Fault.FORWARDING6_OFF: _machine(),
    Fault.UPLINK_FORWARDING_OFF: _machine(),
    Fault.TUNNEL_FORWARDING_OFF: _machine(alone=True),
    Fault.ADDRESSES_FLUSHED: _machine(alone=True),
    Fault.ADDRESS_GONE: _machine(alone=True),
    Fault.TUNNEL_DOWN: _machine(alone=True),
    Fault.TUNNEL_BOUNCED: _machine(alone=True),
    Fault.TUNNEL_MTU: _machine(alone=True, gap=False),
    Fault.UPLINK_ADDRESS: _machine(readiness=Readiness.KEEPS, gap=False, seconds=0.5),
    Fault.ROUTE_GONE: _machine(readiness=Readiness.LOSES, seconds=2.0),
}
"""Every fault's row, for a Relay that uses the kernel."""

_ENGINE_ENDS: Final = "connections end with the engine, which ends with the Relay and with trust"

USERSPACE: Final[dict[Fault, Traits]] = {
    **{fault: row for fault, row in TRAITS.items() if row.target is not Target.MACHINE},
    **{
        fault: replace(TRAITS[fault], cuts=_BOTH_TCP, why=_ENGINE_ENDS)
        for fault in (
            *(Fault.RELAY_KILLED, Fault.RELAY_STOPPED, Fault.RELAY_RESTARTED),
            *(Fault.AGENT_KILLED, Fault.AGENT_RESTARTED, Fault.MODULE_DEBUG, Fault.STREAM_REFUSED),
        )
    },
    **{fault: TRAITS[fault] for fault in (Fault.FOREIGN_TABLE, Fault.UPLINK_ADDRESS, Fault.ROUTE_GONE)},
    Fault.ENGINE_KILLED: Traits(
        Target.ENGINE, alone=True, reasons=frozenset({"rules", "uplink", "path"}), cuts=_BOTH_TCP, why=_ENGINE_ENDS
    ),
}
"""The rows for a Relay with the user-space uplink, which has no interface, rules or switches that could be changed."""

TABLES: Final = {"": TRAITS, "kernel": TRAITS, "auto": TRAITS, "userspace": USERSPACE}
"""The table for each uplink (`lab.uplinks`)."""
