"""Session keys: one `Keypair` a handshake, and the three that a peer holds at once (whitepaper section 6.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wgvsock.wireguard.noise import TransportKeys
from wgvsock.wireguard.replay import ReplayWindow
from wgvsock.wireguard.timers import NEVER, Timings

if TYPE_CHECKING:
    from wgvsock.wireguard.peer import Peer


class Keypair:
    """The keys of one session, with the limits after which they are renewed and refused (section 6.2).

    Attributes:
        peer: Whose session it is.
        local_index: Names this keypair in messages that we receive.
        remote_index: Names it in messages that we send.
        initiator: Whether this side started the handshake.
        handshake_started_at: When the initiation was created or consumed.
        rekey_at: From here on a packet sent starts a new handshake; only the initiator's does.
        last_minute_at: From here on a packet received does so as well, so that a session that only receives goes on.
        reject_at: From here on the keypair neither sends nor receives.
        sending_counter: Counter of the next message; also the number of messages sent.
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
        """Take over the keys: they are wiped here once OpenSSL has its copy."""
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
        self.encrypt_into = ChaCha20Poly1305(keys.sending).encrypt_into
        self.decrypt_into = ChaCha20Poly1305(keys.receiving).decrypt_into
        keys.wipe()

    def can_send(self, now: float) -> bool:
        """Whether neither REJECT_AFTER_TIME nor REJECT_AFTER_MESSAGES has been reached."""
        return now < self.reject_at and self.sending_counter < self.reject_after_messages

    def wipe(self) -> None:
        """Let go of the ciphers, whose keys OpenSSL then cleanses; the keypair must not be used any more."""
        del self.encrypt_into, self.decrypt_into


class Keypairs:
    """The current keypair, the previous one for packets that are still on their way, and the next one.

    A responder's new keypair waits as `next` until the initiator's first message proves that it has it as well.

    Args:
        retire: Called with each keypair that leaves.
    """

    __slots__ = ("_retire", "current", "next", "previous")

    def __init__(self, retire: Callable[[Keypair], None]) -> None:
        self._retire = retire
        self.current: Keypair | None = None
        self.previous: Keypair | None = None
        self.next: Keypair | None = None

    def __iter__(self) -> Iterator[Keypair]:
        return iter([keypair for keypair in (self.current, self.previous, self.next) if keypair is not None])

    def install(self, keypair: Keypair) -> None:
        """A handshake ended: an initiator uses its keypair at once, a responder's becomes the next one."""
        if not keypair.initiator:
            self._replace(self.current, previous=None, next_=keypair)
        elif self.next is not None:
            # Both sides started a handshake at once. The peer may be sending with the one that we answered.
            self._replace(keypair, previous=self.next, next_=None)
        else:
            self._replace(keypair, previous=self.current, next_=None)

    def confirm(self) -> None:
        """A message arrived under the next keypair: it becomes the current one."""
        self._replace(self.next, previous=self.current, next_=None)

    def clear(self) -> None:
        """Retire all of them."""
        self._replace(None, previous=None, next_=None)

    def _replace(self, current: Keypair | None, *, previous: Keypair | None, next_: Keypair | None) -> None:
        before = list(self)
        self.current, self.previous, self.next = current, previous, next_
        for keypair in before:
            if keypair is not current and keypair is not previous and keypair is not next_:
                self._retire(keypair)
