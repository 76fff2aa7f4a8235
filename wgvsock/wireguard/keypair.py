"""Session keys: one `Keypair` per handshake, and the keypairs that a peer has at once (whitepaper section 6.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wgvsock.errors import LocalProtocolError
from wgvsock.wireguard.constants import REKEY_TIMEOUT
from wgvsock.wireguard.noise import TransportKeys
from wgvsock.wireguard.primitives import Bytes
from wgvsock.wireguard.replay import ReplayWindow
from wgvsock.wireguard.timers import NEVER, Timings

if TYPE_CHECKING:
    from wgvsock.wireguard.peer import Peer


Cipher = Callable[[Bytes, Bytes, Bytes | None, Bytes], int]
"""``encrypt_into`` or ``decrypt_into``: takes nonce, data, associated data and output, returns the bytes written."""


def _wiped(_nonce: Bytes, _data: Bytes, _associated_data: Bytes | None, _out: Bytes) -> int:
    raise LocalProtocolError("a keypair was used after it was wiped")


class Keypair:
    """The keys of one session, with the limits after which they are renewed and refused (section 6.2).

    All times are in monotonic seconds.

    Attributes:
        peer: The peer of the session.
        local_index: Identifies this keypair in messages that we receive.
        remote_index: Identifies it in messages that we send.
        initiator: Whether this side started the handshake.
        handshake_started_at: When the initiation was created or consumed.
        rekey_at: From then on, sending a packet starts a new handshake. Only on the initiator's side.
        last_minute_at: From then on, receiving a packet does so too, so that a session that only receives continues.
        reject_at: From then on, the keypair neither sends nor receives.
        sending_counter: Counter of the next message, which is also the number of messages sent.
        encrypt_into: ``ChaCha20Poly1305.encrypt_into`` under the sending key.
        decrypt_into: ``ChaCha20Poly1305.decrypt_into`` under the receiving key.
    """

    __slots__ = (
        "decrypt_into",
        "encrypt_into",
        "handshake_started_at",
        "initiator",
        "last_minute_at",
        "local_index",
        "peer",
        "reject_after_messages",
        "reject_at",
        "rekey_after_messages",
        "rekey_at",
        "remote_index",
        "replay_window",
        "sending_counter",
    )

    def __init__(
        self,
        peer: Peer,
        keys: TransportKeys,
        *,
        initiator: bool,
        local_index: int,
        remote_index: int,
        handshake_started_at: float,
        timings: Timings,
        now: float,
    ) -> None:
        """Take over the keys. They are wiped here once OpenSSL has its copy."""
        self.peer = peer
        self.local_index = local_index
        self.remote_index = remote_index
        self.initiator = initiator
        self.handshake_started_at = handshake_started_at
        self.reject_at = now + timings.reject_after_time
        self.rekey_at = now + timings.rekey_after_time if initiator else NEVER
        last_minute = timings.reject_after_time - timings.keepalive_timeout - timings.rekey_timeout
        self.last_minute_at = now + last_minute if initiator else NEVER
        self.rekey_after_messages = timings.rekey_after_messages
        self.reject_after_messages = timings.reject_after_messages
        self.sending_counter = 0
        self.replay_window = ReplayWindow()
        self.encrypt_into: Cipher = ChaCha20Poly1305(keys.sending).encrypt_into
        self.decrypt_into: Cipher = ChaCha20Poly1305(keys.receiving).decrypt_into
        keys.wipe()

    def can_send(self, now: float) -> bool:
        """Whether neither REJECT_AFTER_TIME nor REJECT_AFTER_MESSAGES has been reached."""
        return now < self.reject_at and self.sending_counter < self.reject_after_messages

    def wipe(self) -> None:
        """Drop the ciphers, whose keys OpenSSL then cleanses. The keypair must not be used after that."""
        self.encrypt_into = self.decrypt_into = _wiped


class Keypairs:
    """The current keypair, the previous one for packets that are still in flight, and the next one.

    A responder's new keypair waits as `next` until the initiator's first message proves that it has the keys as well.

    If both sides start a handshake at once, two new keypairs exist before the remote stops using the old one, which it
    does when it gets one of ours. A second previous keypair, `older`, is kept in that case. The Linux implementation
    has no slot for it, and loses packets that are in flight under it.

    Args:
        retire: Called with each keypair that is dropped.
    """

    __slots__ = ("_retire", "current", "next", "older", "previous")

    def __init__(self, retire: Callable[[Keypair], None]) -> None:
        self._retire = retire
        self.current: Keypair | None = None
        self.previous: Keypair | None = None
        self.older: Keypair | None = None
        self.next: Keypair | None = None

    def __iter__(self) -> Iterator[Keypair]:
        slots = (self.current, self.previous, self.older, self.next)
        return iter([keypair for keypair in slots if keypair is not None])

    def install(self, keypair: Keypair) -> None:
        """Add a handshake's keypair. An initiator uses it at once. A responder's becomes the next one."""
        previous, older = (self.previous, self.older) if self._crosses(keypair) else (None, None)
        if not keypair.initiator:
            self._replace(self.current, previous=previous, older=older, next_=keypair)
        elif self.next is not None:
            # The remote sends with the keypair of our response if it has received that, otherwise with the current one.
            self._replace(keypair, previous=self.next, older=self.current)
        else:
            self._replace(keypair, previous=self.current, older=previous)

    def confirm(self) -> None:
        """Make the next keypair the current one, because a message has arrived under it."""
        older = self.previous if self.next is not None and self._crosses(self.next) else None
        self._replace(self.next, previous=self.current, older=older)

    def hand_over(self, heir: Keypairs) -> None:
        """Let `heir` receive messages in flight. It does not send under our keypairs until it has a new one."""
        heir.previous, heir.next = self.current, self.next
        self.current = self.next = None

    def clear(self) -> None:
        """Retire all keypairs."""
        self._replace(None)

    def _crosses(self, keypair: Keypair) -> bool:
        """Whether its handshake overlapped with that of the current keypair.

        Successive handshakes start at least REKEY_TIMEOUT apart (whitepaper section 6.1).
        """
        return (
            self.current is not None
            and keypair.handshake_started_at - self.current.handshake_started_at < REKEY_TIMEOUT
        )

    def _replace(
        self,
        current: Keypair | None,
        *,
        previous: Keypair | None = None,
        older: Keypair | None = None,
        next_: Keypair | None = None,
    ) -> None:
        before = list(self)
        self.current, self.previous, self.older, self.next = current, previous, older, next_
        for keypair in before:
            if keypair is not current and keypair is not previous and keypair is not older and keypair is not next_:
                self._retire(keypair)
