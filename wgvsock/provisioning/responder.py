"""The enclave's side: which relay it serves, over many connections, without I/O.

States of the link to the relay, which are independent of the states of one connection
(`wgvsock.provisioning.exchange`)::

    UNPROVISIONED --applied--> PENDING --authenticated--> ACTIVE --applied--> REPLACING --authenticated--> ACTIVE
          ^                       |                         ^                     |
          +------withdrawn--------+                         +------withdrawn------+

Anyone can connect, and occupies one of `MAX_WAITING` places until the REQUEST has arrived. If all are taken, a new
connection evicts the oldest. The relay proves itself with the pin's signature or the adopted key's. With neither, the
first to provision an unprovisioned enclave counts as the relay. A proved exchange leaves these places. Only one is
active at a time, and the next begins only after the shell has handled all events of the last one, so that only a
handful of events can wait for a shell that hangs.

*Applied*: the shell has put an assignment in force. *Authenticated*: the relay proved its WireGuard key and the
preshared key. *Withdrawn*: the relay reported a failure, the exchange broke before the document was sent, or nothing
was proved in time. A successor never replaces a working assignment before it has proved itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from itertools import takewhile
from math import inf
from types import MappingProxyType
from typing import Final

from wgvsock.provisioning import errors
from wgvsock.provisioning.capabilities import DEFAULT_CAPABILITIES
from wgvsock.provisioning.deadlines import DEFAULT_DEADLINES, MAX_WAITING, REPORT_INTERVAL, Deadlines
from wgvsock.provisioning.errors import ExchangeError
from wgvsock.provisioning.events import (
    Assignment,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    EnclaveEvent,
    ExchangeEnded,
    StrangersTurnedAway,
)
from wgvsock.provisioning.exchange import Exchange
from wgvsock.provisioning.messages import Request
from wgvsock.provisioning.pin import check_pin, verify_request


class LinkState(Enum):
    """The states of the link to the relay."""

    UNPROVISIONED = auto()
    PENDING = auto()
    ACTIVE = auto()
    REPLACING = auto()


class LinkInput(Enum):
    """What changes the state of the link."""

    APPLIED = auto()
    AUTHENTICATED = auto()
    WITHDRAWN = auto()


LINK_TRANSITIONS: Final[Mapping[tuple[LinkState, LinkInput], LinkState]] = MappingProxyType(
    {
        (LinkState.UNPROVISIONED, LinkInput.APPLIED): LinkState.PENDING,
        (LinkState.PENDING, LinkInput.AUTHENTICATED): LinkState.ACTIVE,
        (LinkState.PENDING, LinkInput.WITHDRAWN): LinkState.UNPROVISIONED,
        (LinkState.ACTIVE, LinkInput.APPLIED): LinkState.REPLACING,
        (LinkState.REPLACING, LinkInput.AUTHENTICATED): LinkState.ACTIVE,
        (LinkState.REPLACING, LinkInput.WITHDRAWN): LinkState.ACTIVE,
    }
)
"""All transitions. Any other pair leaves the state unchanged."""

_UNPROVED: Final = frozenset({LinkState.PENDING, LinkState.REPLACING})


def _never() -> float:
    return -inf


def _no() -> bool:
    return False


class EnclaveProvisioning:
    """What the enclave knows about its relay, for the life of the agent.

    The shell calls `accept` for each connection, carries bytes between it and the `Exchange`, and calls `handle_timers`
    when `next_deadline` passes. After every call, it sends the bytes of the exchanges that `take_changed` returns, and
    handles the events of `next_event` in order, one after the other. All exchanges share one queue of events, because
    exchanges, timers and activation change the same WireGuard peer.

    Args:
        random: Returns as many unpredictable bytes as requested.
        capabilities: The capabilities that HELLO offers.
        relay_pin: Ed25519 public key (32 bytes) measured into the image, with which every request has to be signed. If
            None, the first relay to connect provisions the enclave.
        last_authenticated: Returns the monotonic time of the newest packet authenticated under the active assignment.
        relay_connected: Returns whether the active assignment's relay has an open stream.
        deadlines: Time limits.

    Raises:
        ConfigurationError: The pin is not a usable Ed25519 public key.
    """

    def __init__(
        self,
        *,
        random: Callable[[int], bytes],
        capabilities: Sequence[str] = DEFAULT_CAPABILITIES,
        relay_pin: bytes | None = None,
        last_authenticated: Callable[[], float] = _never,
        relay_connected: Callable[[], bool] = lambda: False,
        deadlines: Deadlines = DEFAULT_DEADLINES,
    ) -> None:
        if relay_pin is not None:
            check_pin(relay_pin)
        self.deadlines = deadlines
        self._random = random
        self._capabilities = tuple(capabilities)
        self._pin = relay_pin
        self._last_authenticated = last_authenticated
        self._relay_connected = relay_connected
        self._waiting: dict[
            Exchange, None
        ] = {}  # for REQUEST, oldest first, which is also the order of their deadlines
        self._at_work: Exchange | None = None
        self._changed: dict[Exchange, None] = {}
        self._strangers: dict[type[ExchangeError], tuple[ExchangeError, int]] = {}
        self._report_at = -inf
        self._report_due = False
        # Events of one proved exchange and of the timer. Another begins only when it is empty, so it holds at most six.
        self._events: deque[EnclaveEvent] = deque()
        self._state = LinkState.UNPROVISIONED
        self._active: Assignment | None = None
        self._activated_at = -inf
        self._successor: Assignment | None = None  # offered, or applied but not yet proved
        self._prove_by = inf
        self._newest_epoch: tuple[bytes, int] | None = None  # signer and epoch of the newest relay that was active

    @property
    def state(self) -> LinkState:
        """The state of the link to the relay."""
        return self._state

    @property
    def active(self) -> Assignment | None:
        """The assignment under which the relay has proved itself."""
        return self._active

    @property
    def pending(self) -> Assignment | None:
        """The assignment that is applied but not yet proved."""
        return self._successor if self._state in _UNPROVED else None

    # For the shell.

    def accept(self, now: float) -> Exchange:
        """Make the exchange of a new connection. This may evict the oldest one that waits for its REQUEST."""
        self.handle_timers(now)
        if len(self._waiting) >= MAX_WAITING:
            next(iter(self._waiting)).evict()
        exchange = Exchange(self, self._capabilities, self._random, now)
        self._waiting[exchange] = None
        self.changed(exchange)
        return exchange

    def activate(self, relay_public_key: bytes, now: float) -> None:
        """Note that the peer with this WireGuard key completed a handshake.

        Nothing happens unless it is the pending assignment's peer. If a new assignment names the same WireGuard key as
        the active one, report only handshakes that started after it was applied: only those prove the new preshared
        key.

        Args:
            relay_public_key: The peer's WireGuard key, 32 bytes.
            now: Monotonic time in seconds.
        """
        if self.pending is None or self.pending.relay_public_key != relay_public_key:
            return
        assignment, replaced = self.pending, self._active
        self._move(LinkInput.AUTHENTICATED)
        self._active, self._activated_at = assignment, now
        if assignment.signer is not None:
            self._newest_epoch = (assignment.signer, assignment.epoch_ms)
        self._successor, self._prove_by = None, inf
        self.emit(ConfigurationActivated(assignment, replaced))

    def next_event(self) -> EnclaveEvent | None:
        """The oldest event that has not been taken yet, or None."""
        if self._events:
            return self._events.popleft()
        if not self._report_due:
            return None
        self._report_due = False
        ends = tuple(self._strangers.values())
        self._strangers.clear()
        return StrangersTurnedAway(ends)

    @property
    def has_event(self) -> bool:
        """Whether `next_event` would return an event."""
        return bool(self._events) or self._report_due

    def take_changed(self) -> list[Exchange]:
        """The exchanges that have bytes to send or have ended since the last call."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def next_deadline(self) -> float | None:
        """When to call `handle_timers`, in monotonic seconds, or None."""
        deadline = self._prove_by
        for exchange in (next(iter(self._waiting), None), self._at_work):
            if exchange is not None and (due := exchange.next_deadline()) is not None:
                deadline = min(deadline, due)
        if self._strangers and not self._report_due:
            deadline = min(deadline, self._report_at)
        return None if deadline == inf else deadline

    def handle_timers(self, now: float) -> None:
        """End overdue exchanges, withdraw an assignment that was not proved in time, and report on strangers."""
        for exchange in list(takewhile(lambda exchange: exchange.is_overdue(now), self._waiting)):
            exchange.handle_timers(now)
        if self._at_work is not None:
            self._at_work.handle_timers(now)
        if now >= self._prove_by:
            self.withdraw(self._successor)
        if self._strangers and now >= self._report_at:
            self._report_due, self._report_at = True, now + REPORT_INTERVAL

    # For `Exchange`.

    def authorise(self, request: Request, binding: bytes, now: float) -> None:
        """Decide whether this relay may provision this enclave now.

        Args:
            request: The decoded REQUEST.
            binding: H (48 bytes) of the HELLO that it answers and the relay's ephemeral key.
            now: Monotonic time in seconds.

        Raises:
            AuthRequiredError, AuthFailedError, SupersededError, StaleEpochError, AlreadyProvisionedError: It may not.
        """
        if self._pin is not None:
            if request.signature is None:
                raise errors.AuthRequiredError("the request is not signed")
            verify_request(self._pin, binding, request)
        elif request.signer is not None:
            verify_request(request.signer, binding, request)
        if self._is_silent(now):
            return  # there is no relay left to displace, whatever the clock of this one says
        serving = self._active or self._successor
        if self._pin is None:
            if serving is None:
                return  # trust on first use
            if request.signer is None or request.signer != serving.signer:
                raise errors.AlreadyProvisionedError("the enclave serves another relay")
        if request.signer is not None:
            self._check_order(request.signer, request)

    def begin(self, exchange: Exchange) -> None:
        """Make an exchange whose relay was authorised the active one.

        Raises:
            BusyError: Another one is active, or the shell has not handled all events of the last one yet.
        """
        if self._at_work is not None or self._events:
            raise errors.BusyError("another exchange is in progress")
        del self._waiting[exchange]
        self._at_work = exchange

    def ended(self, exchange: Exchange, error: ExchangeError | None) -> None:
        """Note that the exchange is over."""
        self.changed(exchange)
        if exchange is self._at_work:
            self._at_work = None
            self.emit(ExchangeEnded(exchange, error))
        elif error is not None:
            del self._waiting[exchange]
            known, count = self._strangers.get(type(error), (error, 0))
            self._strangers[type(error)] = (known, count + 1)

    def changed(self, exchange: Exchange) -> None:
        """Note that the shell has to look at this exchange."""
        self._changed[exchange] = None

    def offer(self, exchange: Exchange, assignment: Assignment) -> None:
        """Withdraw any pending assignment, and ask the shell to apply the new one of a valid request."""
        self.withdraw(self._successor)
        self._successor = assignment
        self.emit(ConfigurationOffered(exchange, assignment, self._active))

    def applied(self, now: float) -> None:
        """Note that the shell has applied the offered assignment."""
        self._move(LinkInput.APPLIED)
        self._prove_by = now + self.deadlines.rollback

    def withdraw(self, assignment: Assignment | None) -> None:
        """Withdraw an assignment if it is offered or pending."""
        if assignment is None or assignment is not self._successor:
            return
        self._move(LinkInput.WITHDRAWN)
        self._successor, self._prove_by = None, inf
        self.emit(ConfigurationRolledBack(assignment, self._active))

    def emit(self, event: EnclaveEvent) -> None:
        """Queue an event for the shell."""
        self._events.append(event)

    # Inside.

    def _check_order(self, signer: bytes, request: Request) -> None:
        """Check that no relay with the same key was started later, and that the request is the newest.

        Only relays that were active count: a newer one that never proves itself must not block the older one.
        """
        active, newest = self._active, self._newest_epoch
        if active is not None and active.signer == signer and request.incarnation < active.incarnation:
            raise errors.SupersededError("the enclave serves a relay that was started later")
        if newest is not None and newest[0] == signer and request.epoch_ms <= newest[1]:
            raise errors.StaleEpochError("the epoch is not larger than that of the last active relay")

    def _is_silent(self, now: float) -> bool:
        """Whether the active relay has been silent for so long that another may take over.

        Silence alone decides, not the keys: a relay that lost its machine has lost its signing key and WireGuard key.
        """
        if self._active is None or self._relay_connected():
            return False
        return now - max(self._activated_at, self._last_authenticated()) >= self.deadlines.silence

    def _move(self, step: LinkInput) -> None:
        self._state = LINK_TRANSITIONS.get((self._state, step), self._state)
