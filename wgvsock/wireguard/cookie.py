"""mac1, mac2 and cookies, which make a flood of handshake messages cheap to refuse (sections 5.3, 5.4.4, 5.4.7).

mac1 proves that the sender knows our public key. mac2 proves that the sender receives messages at its source address,
because it contains a cookie that was sent there.
"""

from __future__ import annotations

from typing import Final

from wgvsock.wireguard.constants import (
    COOKIE_NONCE_SIZE,
    COOKIE_SIZE,
    HASH_SIZE,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAC_SIZE,
)
from wgvsock.wireguard.messages import NO_MAC, CookieReply
from wgvsock.wireguard.primitives import (
    Bytes,
    InvalidTag,
    Random,
    equal,
    hash_,
    mac,
    wipe,
    xaead,
    xaead_open,
)
from wgvsock.wireguard.timers import Timings

_MACS_SIZE: Final = 2 * MAC_SIZE


class CookieChecker:
    """The receiver's half, one per device: checks MACs and makes cookie replies.

    Args:
        random: Entropy for the secret and for nonces.
        timings: Has the lifetime of the secret.
    """

    __slots__ = ("_cookie_key", "_mac1_key", "_random", "_secret", "_secret_made_at", "_timings")

    def __init__(self, random: Random, timings: Timings) -> None:
        self._random = random
        self._timings = timings
        self._mac1_key = b""
        self._cookie_key = b""
        self._secret = bytearray(HASH_SIZE)
        self._secret_made_at = float("-inf")

    def set_public_key(self, public_key: bytes) -> None:
        """Set our public key, 32 bytes, from which senders derive their MAC keys."""
        self._mac1_key = hash_(LABEL_MAC1, public_key)
        self._cookie_key = hash_(LABEL_COOKIE, public_key)

    def check_mac1(self, message: Bytes) -> bool:
        """Whether msg.mac1 = MAC(HASH(LABEL_MAC1 || S_m^pub), msg_alpha) with our public key (section 5.4.4).

        Args:
            message: A handshake message, whose last 32 bytes are mac1 and mac2.
        """
        return equal(message[-_MACS_SIZE:-MAC_SIZE], mac(self._mac1_key, message[:-_MACS_SIZE]))

    def check_mac2(self, message: Bytes, source: bytes, now: float) -> bool:
        """Whether msg.mac2 = MAC(cookie, msg_beta) with the cookie of this source (section 5.4.4).

        Args:
            message: A handshake message, whose last 32 bytes are mac1 and mac2.
            source: The message's source, from `cookie_source`.
            now: Monotonic seconds.
        """
        return equal(message[-MAC_SIZE:], mac(self._cookie(source, now), message[:-MAC_SIZE]))

    def create_reply(self, message: Bytes, receiver_index: int, source: bytes, now: float) -> CookieReply:
        """The cookie reply to a message whose mac1 is valid (section 5.4.7).

        Args:
            message: The refused handshake message.
            receiver_index: The message's sender index.
            source: The message's source, from `cookie_source`.
            now: Monotonic seconds.
        """
        # msg.nonce := random;  msg.cookie := XAEAD(HASH(LABEL_COOKIE || S_m^pub), msg.nonce, cookie, M)
        nonce = self._random(COOKIE_NONCE_SIZE)
        mac1 = bytes(message[-_MACS_SIZE:-MAC_SIZE])
        return CookieReply(receiver_index, nonce, xaead(self._cookie_key, nonce, self._cookie(source, now), mac1))

    def _cookie(self, source: bytes, now: float) -> bytes:
        # R_m changes every two minutes;  cookie := MAC(R_m, A_m')
        if now - self._secret_made_at >= self._timings.cookie_secret_max_age:
            self._secret[:] = self._random(HASH_SIZE)
            self._secret_made_at = now
        return mac(self._secret, source)


class CookieMaker:
    """The sender's half, one per peer: adds MACs and keeps the cookie that the peer sent.

    Args:
        public_key: The peer's public key, 32 bytes.
        timings: Has the lifetime of a cookie.
    """

    __slots__ = ("_cookie", "_cookie_key", "_fresh_until", "_last_mac1", "_mac1_key", "_timings")

    def __init__(self, public_key: bytes, timings: Timings) -> None:
        self._timings = timings
        self._mac1_key = hash_(LABEL_MAC1, public_key)
        self._cookie_key = hash_(LABEL_COOKIE, public_key)
        self._cookie = bytearray(COOKIE_SIZE)
        self._fresh_until = float("-inf")
        self._last_mac1 = b""

    def add_macs(self, message: bytes, now: float) -> bytes:
        """Fill in mac1 and mac2 (section 5.4.4).

        Args:
            message: A handshake message. Its last 32 bytes are replaced.
            now: Monotonic seconds.

        Returns:
            The message with its MACs, of the same length.
        """
        body = message[:-_MACS_SIZE]
        # msg.mac1 := MAC(HASH(LABEL_MAC1 || S_m'^pub), msg_alpha)
        self._last_mac1 = mac1 = mac(self._mac1_key, body)
        # if there is no fresh cookie, msg.mac2 := 0^16, else msg.mac2 := MAC(L_m, msg_beta)
        mac2 = mac(self._cookie, body, mac1) if now < self._fresh_until else NO_MAC
        return body + mac1 + mac2

    def consume_reply(self, reply: CookieReply, now: float) -> bool:
        """Keep the cookie of an authentic reply to our last handshake message. False if it is not authentic."""
        if not self._last_mac1:
            return False
        try:
            cookie = xaead_open(self._cookie_key, reply.nonce, reply.encrypted_cookie, self._last_mac1)
        except InvalidTag:
            return False
        self._cookie[:] = cookie
        self._fresh_until = now + self._timings.cookie_secret_max_age - self._timings.cookie_secret_latency
        self._last_mac1 = b""
        return True

    def wipe(self) -> None:
        """Forget the cookie."""
        wipe(self._cookie)
        self._fresh_until = float("-inf")
