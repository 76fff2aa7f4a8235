"""The enclave's side: which relay it serves, over many connections, without I/O.

States of the link to the relay, apart from the states of one connection (`wgvsock.provisioning.exchange`)::

    UNPROVISIONED --applied--> PENDING --authenticated--> ACTIVE --applied--> REPLACING --authenticated--> ACTIVE
          ^                       |                         ^                     |
          +------withdrawn--------+                         +------withdrawn------+

*Applied*: the shell has put an assignment in force. *Authenticated*: the relay proved its WireGuard key and the
preshared key. *Withdrawn*: the relay reported a failure, the exchange broke before the document was sent, or nothing
was proved in time. A successor never displaces what works before it has proved itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from math import inf
from types import MappingProxyType
from typing import Final

from wgvsock.provisioning import errors
from wgvsock.provisioning.capabilities import DEFAULT_CAPABILITIES
from wgvsock.provisioning.deadlines import (
    CONNECTION_BURST,
    CONNECTIONS_PER_SECOND,
    DEFAULT_DEADLINES,
    Deadlines,
    TokenBucket,
)
from wgvsock.provisioning.events import (
    Assignment,
    ConfigurationActivated,
    ConfigurationOffered,
    ConfigurationRolledBack,
    EnclaveEvent,
)
from wgvsock.provisioning.exchange import Exchange
from wgvsock.provisioning.messages import Request
from wgvsock.provisioning.pin import check_pin, verify_request


class LinkState(Enum):
    """Whom the enclave serves."""

    UNPROVISIONED = auto()
    PENDING = auto()
    ACTIVE = auto()
    REPLACING = auto()


class LinkInput(Enum):
    """What changes that."""

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
"""All of them; any other pair leaves the state as it is."""

_UNPROVED: Final = frozenset({LinkState.PENDING, LinkState.REPLACING})


def _never() -> float:
    return -inf


class EnclaveProvisioning:
    """What the enclave knows about its relay, for the life of the agent.

    The shell calls `accept` for each connection, carries bytes between it and the `Exchange`, calls `handle_timers`
    when `next_deadline` comes, and works through `next_event` after every call, in order. There is one queue of events
    for all, because exchanges, timers and activation all change the same WireGuard peer.

    Args:
        random: Returns as many unpredictable bytes as asked for.
        capabilities: What HELLO offers.
        relay_pin: Ed25519 public key (32 bytes) measured into the image, whose signature every request needs; None:
            whoever comes first provisions the enclave.
        last_authenticated: Monotonic time of the newest packet authenticated under the active assignment.
        deadlines: Seconds for everything.

    Raises:
        ConfigurationError: The pin is no usable Ed25519 public key.
    """

    def __init__(
        self,
        *,
        random: Callable[[int], bytes],
        capabilities: Sequence[str] = DEFAULT_CAPABILITIES,
        relay_pin: bytes | None = None,
        last_authenticated: Callable[[], float] = _never,
        deadlines: Deadlines = DEFAULT_DEADLINES,
    ) -> None:
        if relay_pin is not None:
            check_pin(relay_pin)
        self.deadlines = deadlines
        self._random = random
        self._capabilities = tuple(capabilities)
        self._pin = relay_pin
        self._last_authenticated = last_authenticated
        self._admission = TokenBucket(CONNECTIONS_PER_SECOND, CONNECTION_BURST)
        self._exchange: Exchange | None = None
        self._events: deque[EnclaveEvent] = deque()  # the shell drains it after each call; one call adds at most four
        self._state = LinkState.UNPROVISIONED
        self._active: Assignment | None = None
        self._activated_at = -inf
        self._successor: Assignment | None = None  # offered, or applied and not yet proved
        self._prove_by = inf
        self._newest_epoch: tuple[bytes, int] | None = None  # signer and epoch of the last accepted signed request

    @property
    def state(self) -> LinkState:
        """Whom the enclave serves."""
        return self._state

    @property
    def active(self) -> Assignment | None:
        """The assignment that the relay has proved itself under."""
        return self._active

    @property
    def pending(self) -> Assignment | None:
        """The assignment that is applied and not yet proved."""
        return self._successor if self._state in _UNPROVED else None

    # For the shell.

    def accept(self, now: float) -> Exchange:
        """A connection was accepted.

        Returns:
            Its exchange; already closed, with an ERROR to send, when there are too many or another one is going on.
        """
        self.handle_timers(now)
        exchange = Exchange(self, self._capabilities, self._random, now)
        if not self._admission.take(now):
            exchange.refuse(errors.RateLimitedError("more than one connection a second"))
        elif self._exchange is not None and not self._exchange.closed:
            exchange.refuse(errors.BusyError("one exchange at a time"))
        else:
            self._exchange = exchange
        return exchange

    def activate(self, relay_public_key: bytes, now: float) -> None:
        """The peer with this WireGuard key completed a handshake.

        It counts if it is the pending assignment's peer; otherwise nothing happens. Where a new assignment names the
        same WireGuard key as the active one, report only handshakes that were started after it was applied: those
        alone prove the new preshared key.
        """
        if self.pending is None or self.pending.relay_public_key != relay_public_key:
            return
        assignment, replaced = self.pending, self._active
        self._move(LinkInput.AUTHENTICATED)
        self._active, self._activated_at = assignment, now
        self._successor, self._prove_by = None, inf
        self.emit(ConfigurationActivated(assignment, replaced))

    def next_event(self) -> EnclaveEvent | None:
        """The oldest event that was not taken yet."""
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float | None:
        """When `handle_timers` has to be called, in monotonic seconds."""
        exchange = self._exchange.next_deadline() if self._exchange is not None else None
        deadline = min(self._prove_by, inf if exchange is None else exchange)
        return None if deadline == inf else deadline

    def handle_timers(self, now: float) -> None:
        """End an overdue exchange, take back an assignment that nobody proved."""
        if self._exchange is not None:
            self._exchange.handle_timers(now)
        if now >= self._prove_by:
            self.withdraw(self._successor)

    # For `Exchange`.

    def authorise(self, request: Request, hello: bytes, now: float) -> None:
        """Decide whether this relay may provision this enclave now.

        Args:
            request: The decoded REQUEST.
            hello: The HELLO that it answers.
            now: Monotonic time in seconds.

        Raises:
            AuthRequiredError, AuthFailedError, StaleEpochError, AlreadyProvisionedError: It may not.
        """
        if self._pin is not None:
            if request.signature is None:
                raise errors.AuthRequiredError("the request is not signed")
            verify_request(self._pin, hello, request)
            self._check_epoch(self._pin, request.epoch_ms)
            return
        if request.signer is not None:
            verify_request(request.signer, hello, request)
        serving = self._active or self._successor
        if serving is None:
            return  # trust on first use
        if request.signer is not None and request.signer == serving.signer:
            self._check_epoch(request.signer, request.epoch_ms)
            return
        if request.relay_public_key == serving.relay_public_key and self._silent(now):
            return
        raise errors.AlreadyProvisionedError("another relay is served")

    def offer(self, exchange: Exchange, assignment: Assignment, epoch_ms: int) -> None:
        """A valid request: what was pending gives way, and the shell is asked to apply the new assignment."""
        self.withdraw(self._successor)
        if assignment.signer is not None:
            self._newest_epoch = (assignment.signer, epoch_ms)
        self._successor = assignment
        self.emit(ConfigurationOffered(exchange, assignment, self._active))

    def applied(self, now: float) -> None:
        """The shell has applied the offered assignment."""
        self._move(LinkInput.APPLIED)
        self._prove_by = now + self.deadlines.rollback

    def withdraw(self, assignment: Assignment | None) -> None:
        """Take an offered or pending assignment back; nothing happens for any other one."""
        if assignment is None or assignment is not self._successor:
            return
        self._move(LinkInput.WITHDRAWN)
        self._successor, self._prove_by = None, inf
        self.emit(ConfigurationRolledBack(assignment, self._active))

    def emit(self, event: EnclaveEvent) -> None:
        """Queue an event for the shell."""
        self._events.append(event)

    # Inside.

    def _check_epoch(self, signer: bytes, epoch_ms: int) -> None:
        if self._newest_epoch is not None and self._newest_epoch[0] == signer and epoch_ms <= self._newest_epoch[1]:
            raise errors.StaleEpochError("the epoch is not larger than the last accepted one")

    def _silent(self, now: float) -> bool:
        """Whether the active relay has shown no sign of life for so long that its tunnel must be down."""
        if self._active is None:
            return False
        return now - max(self._activated_at, self._last_authenticated()) >= self.deadlines.silence

    def _move(self, step: LinkInput) -> None:
        self._state = LINK_TRANSITIONS.get((self._state, step), self._state)
