"""A peer's timers (whitepaper section 6): five deadlines, set by hooks that are named after the event.

The hooks run for every packet, so they only note times: `Timers.deadline` and `Timers.expire` work out lazily which
deadline has passed. The owner is told of a deadline only when it lies before the earliest it already knows; a deadline
that was cleared or moved back costs one early wake-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from wgvsock.wireguard import constants
from wgvsock.wireguard.primitives import Random

NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Timings:
    """The limits of whitepaper section 6.1, in seconds and messages; tests shorten them here."""

    rekey_after_time: float = constants.REKEY_AFTER_TIME
    reject_after_time: float = constants.REJECT_AFTER_TIME
    rekey_attempt_time: float = constants.REKEY_ATTEMPT_TIME
    rekey_timeout: float = constants.REKEY_TIMEOUT
    rekey_timeout_jitter: float = constants.REKEY_TIMEOUT_JITTER
    keepalive_timeout: float = constants.KEEPALIVE_TIMEOUT
    cookie_secret_max_age: float = constants.COOKIE_SECRET_MAX_AGE
    cookie_secret_latency: float = constants.COOKIE_SECRET_LATENCY
    rekey_after_messages: int = constants.REKEY_AFTER_MESSAGES
    reject_after_messages: int = constants.REJECT_AFTER_MESSAGES


STANDARD_TIMINGS: Final = Timings()


class Expired(Enum):
    """What a peer has to do about a deadline that passed."""

    RETRY_HANDSHAKE = "retry_handshake"
    GIVE_UP_HANDSHAKE = "give_up_handshake"
    SEND_KEEPALIVE = "send_keepalive"
    NEW_HANDSHAKE = "new_handshake"
    ZERO_KEY_MATERIAL = "zero_key_material"
    PERSISTENT_KEEPALIVE = "persistent_keepalive"


class Timers:
    """The deadlines of one peer, in monotonic seconds; `NEVER` when not running.

    Args:
        timings: The limits.
        random: Entropy for jitter.
        notify: Called with a deadline that is earlier than all that were known.

    Attributes:
        retransmit_handshake: An initiation has gone unanswered for REKEY_TIMEOUT and jitter.
        send_keepalive: KEEPALIVE_TIMEOUT after data received, if nothing was sent in between: a passive keepalive.
        new_handshake: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT after data sent, if nothing came back: the session may be dead.
        zero_key_material: Three times REJECT_AFTER_TIME after the last session began.
        handshake_attempts: Initiations sent without an answer since a handshake was last asked for.
        persistent_keepalive: Interval in seconds after which a keepalive follows the last message; 0 = off.
    """

    __slots__ = (
        "_known",
        "_last_traversal",
        "_notify",
        "_random",
        "_silence",
        "_timings",
        "handshake_attempts",
        "new_handshake",
        "persistent_keepalive",
        "retransmit_handshake",
        "send_keepalive",
        "zero_key_material",
    )

    def __init__(self, timings: Timings, random: Random, notify: Callable[[float], None]) -> None:
        self._timings = timings
        self._random = random
        self._notify = notify
        self._known = NEVER
        self._last_traversal = NEVER
        self._silence = timings.keepalive_timeout + timings.rekey_timeout
        self.handshake_attempts = 0
        self.new_handshake = NEVER
        self.persistent_keepalive = 0
        self.retransmit_handshake = NEVER
        self.send_keepalive = NEVER
        self.zero_key_material = NEVER

    # --- hooks of the hot path ---

    def data_sent(self, now: float) -> None:
        """A packet (not a keepalive) was sealed."""
        self.send_keepalive = NEVER
        self._last_traversal = now
        if self.new_handshake == NEVER:
            self.new_handshake = deadline = now + self._silence
            if deadline < self._known:
                self._announce(deadline)

    def data_received(self, now: float) -> None:
        """An authenticated packet (not a keepalive) arrived."""
        self.new_handshake = NEVER
        self._last_traversal = now
        if self.send_keepalive == NEVER:
            self.send_keepalive = deadline = now + self._timings.keepalive_timeout
            if deadline < self._known:
                self._announce(deadline)

    # --- hooks of handshakes and keepalives ---

    def any_authenticated_packet_sent(self, now: float) -> None:
        """A keepalive or a handshake message was sent: the peer will hear from us, no passive keepalive is due."""
        self.send_keepalive = NEVER
        self._traversed(now)

    def any_authenticated_packet_received(self, now: float) -> None:
        """A keepalive or a handshake message arrived: the peer is alive."""
        self.new_handshake = NEVER
        self._traversed(now)

    def handshake_wanted(self) -> None:
        """Something other than the retry timer asks for a handshake: the attempts count from here (section 6.4)."""
        self.handshake_attempts = 0

    def handshake_initiated(self, now: float) -> None:
        """An initiation was sent."""
        self.handshake_attempts += 1
        self.retransmit_handshake = now + self._timings.rekey_timeout + self._jitter()
        self._announce(self.retransmit_handshake)

    def handshake_complete(self) -> None:
        """The peer has proved its keys."""
        self.retransmit_handshake = NEVER
        self.handshake_attempts = 0

    def session_derived(self, now: float) -> None:
        """A handshake yielded a keypair."""
        self._silence = self._timings.keepalive_timeout + self._timings.rekey_timeout + self._jitter()
        self.zero_key_material = now + 3 * self._timings.reject_after_time
        self._announce(self.zero_key_material)

    def set_persistent_keepalive(self, seconds: int) -> None:
        """Change the interval; it counts from the last message."""
        self.persistent_keepalive = seconds
        self._announce(self._persistent_keepalive_at())

    def stop(self) -> None:
        """The session is gone: every timer but the persistent keepalive stops."""
        self.retransmit_handshake = self.send_keepalive = self.new_handshake = self.zero_key_material = NEVER

    # --- deadlines ---

    def deadline(self) -> float:
        """The earliest deadline, which is from now on the known one."""
        self._known = min(
            self.retransmit_handshake,
            self.send_keepalive,
            self.new_handshake,
            self.zero_key_material,
            self._persistent_keepalive_at(),
        )
        return self._known

    def expire(self, now: float) -> list[Expired]:
        """Stop the timers whose deadline has passed and say what to do about them, in this order."""
        expired = []
        if now >= self.retransmit_handshake:
            self.retransmit_handshake = NEVER
            if self.handshake_attempts < self._timings.rekey_attempt_time / self._timings.rekey_timeout:
                expired.append(Expired.RETRY_HANDSHAKE)
            else:
                self.send_keepalive = NEVER
                expired.append(Expired.GIVE_UP_HANDSHAKE)
        if now >= self.send_keepalive:
            self.send_keepalive = NEVER
            expired.append(Expired.SEND_KEEPALIVE)
        if now >= self.new_handshake:
            self.new_handshake = NEVER
            expired.append(Expired.NEW_HANDSHAKE)
        if now >= self.zero_key_material:
            self.zero_key_material = NEVER
            expired.append(Expired.ZERO_KEY_MATERIAL)
        if now >= self._persistent_keepalive_at() and Expired.SEND_KEEPALIVE not in expired:
            self._last_traversal = now
            expired.append(Expired.PERSISTENT_KEEPALIVE)
        return expired

    def _traversed(self, now: float) -> None:
        self._last_traversal = now
        if self.persistent_keepalive:
            self._announce(now + self.persistent_keepalive)

    def _persistent_keepalive_at(self) -> float:
        return self._last_traversal + self.persistent_keepalive if self.persistent_keepalive else NEVER

    def _announce(self, deadline: float) -> None:
        if deadline < self._known:
            self._known = deadline
            self._notify(deadline)

    def _jitter(self) -> float:
        return self._timings.rekey_timeout_jitter * int.from_bytes(self._random(2), "big") / 65536
