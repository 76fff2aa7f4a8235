"""A peer's timers (whitepaper section 6): five deadlines, set by hooks that are named after the event.

The hooks run for every packet, so they only note times. `Timers.deadline` and `Timers.expire` determine lazily which
deadline has passed. The owner is notified of a deadline only if it is earlier than the earliest it already knows. A
deadline that was cleared or moved back costs one early wake-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from wgvsock.wireguard import constants
from wgvsock.wireguard.primitives import Random

NEVER: Final = float("inf")


def _ignore(_deadline: float) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Timings:
    """The limits of whitepaper section 6.1, in seconds and messages. Tests shorten them."""

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
    """What a peer has to do when a deadline passes."""

    RETRY_HANDSHAKE = "retry_handshake"
    GIVE_UP_HANDSHAKE = "give_up_handshake"
    SEND_KEEPALIVE = "send_keepalive"
    NEW_HANDSHAKE = "new_handshake"
    ZERO_KEY_MATERIAL = "zero_key_material"
    PERSISTENT_KEEPALIVE = "persistent_keepalive"


class Timers:
    """The deadlines of one peer, in monotonic seconds, or `NEVER` when not running.

    Args:
        timings: The limits.
        random: Entropy for jitter.
        notify: Called with a deadline that is earlier than all known ones.

    Attributes:
        retransmit_handshake: When an initiation has gone unanswered for REKEY_TIMEOUT and jitter.
        send_keepalive: KEEPALIVE_TIMEOUT after data was received, if nothing was sent since: a passive keepalive.
        new_handshake: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT after data was sent, if nothing came back: the session may be
            dead.
        zero_key_material: Three times REJECT_AFTER_TIME after the last session began.
        known: The last deadline that the owner was notified of.
        handshake_attempts: Unanswered initiations since a handshake was last requested.
        persistent_keepalive: Seconds between the last message and a keepalive, 0 if off.
    """

    __slots__ = (
        "_last_traversal",
        "_notify",
        "_random",
        "_silence",
        "_timings",
        "handshake_attempts",
        "known",
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
        self.known = NEVER
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
        """Note that a packet (not a keepalive) was sealed."""
        self.send_keepalive = NEVER
        self._last_traversal = now
        if self.new_handshake == NEVER:
            self.new_handshake = deadline = now + self._silence
            if deadline < self.known:
                self._announce(deadline)

    def data_received(self, now: float) -> None:
        """Note that an authenticated packet (not a keepalive) arrived."""
        self.new_handshake = NEVER
        self._last_traversal = now
        if self.send_keepalive == NEVER:
            self.send_keepalive = deadline = now + self._timings.keepalive_timeout
            if deadline < self.known:
                self._announce(deadline)

    # --- hooks of handshakes and keepalives ---

    def any_authenticated_packet_sent(self, now: float) -> None:
        """Note that a keepalive or a handshake message was sent, so that no passive keepalive is needed."""
        self.send_keepalive = NEVER
        self._traversed(now)

    def any_authenticated_packet_received(self, now: float) -> None:
        """Note that a keepalive or a handshake message arrived, so that the peer is alive."""
        self.new_handshake = NEVER
        self._traversed(now)

    def handshake_wanted(self) -> None:
        """Restart the count of attempts: something other than the retry timer requests a handshake (section 6.4)."""
        self.handshake_attempts = 0

    def handshake_initiated(self, now: float) -> None:
        """Note that an initiation was sent."""
        self.handshake_attempts += 1
        self.retransmit_handshake = now + self._timings.rekey_timeout + self._jitter()
        self._announce(self.retransmit_handshake)

    def handshake_complete(self) -> None:
        """Note that the peer has proved its keys."""
        self.retransmit_handshake = NEVER
        self.handshake_attempts = 0

    def session_derived(self, now: float) -> None:
        """Note that a handshake yielded a keypair."""
        self._silence = self._timings.keepalive_timeout + self._timings.rekey_timeout + self._jitter()
        self.zero_key_material = now + 3 * self._timings.reject_after_time
        self._announce(self.zero_key_material)

    def set_persistent_keepalive(self, seconds: int) -> None:
        """Change the interval, which counts from the last message."""
        self.persistent_keepalive = seconds
        self._announce(self._persistent_keepalive_at())

    def persistent_keepalive_due(self, now: float) -> None:
        """Make the persistent keepalive due now, if it is on."""
        if self.persistent_keepalive:
            self._last_traversal = now - self.persistent_keepalive - 1.0  # a second exceeds any rounding error
            self._announce(self._persistent_keepalive_at())

    def stop(self) -> None:
        """Stop every timer except the persistent keepalive, because the session is gone."""
        self.retransmit_handshake = self.send_keepalive = self.new_handshake = self.zero_key_material = NEVER

    def detach(self) -> None:
        """Stop for good: the owner is no longer notified, and the timers no longer keep it in memory."""
        self.set_persistent_keepalive(0)
        self.stop()
        self._notify = _ignore

    # --- deadlines ---

    def deadline(self) -> float:
        """Return the earliest deadline, and make it the known one."""
        self.known = min(
            self.retransmit_handshake,
            self.send_keepalive,
            self.new_handshake,
            self.zero_key_material,
            self._persistent_keepalive_at(),
        )
        return self.known

    def expire(self, now: float) -> list[Expired]:
        """Stop the timers whose deadline has passed, and return what to do about them, in order."""
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
        if deadline < self.known:
            self.known = deadline
            self._notify(deadline)

    def _jitter(self) -> float:
        return self._timings.rekey_timeout_jitter * int.from_bytes(self._random(2), "big") / 65536
