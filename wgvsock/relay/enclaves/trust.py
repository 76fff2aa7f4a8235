"""Decides what a refusal means, and how long the relay trusts its last attestation. There is no I/O here.

An attacker between relay and enclave can replace any message, even with a genuine document of another enclave. The
weight of a refusal therefore depends on what its sender has proved. Only a signed document of the very enclave that is
meant ends a working tunnel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

from wgvsock.attestation.binding import is_enclave_id
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.errors import WgvsockError
from wgvsock.provisioning.errors import SupersededError

ASK_AFTER_LOSS: Final = 1.0
"""Seconds without a stream before the relay attests the enclave, once per loss. A broken stream is connected again
after 0.5 to 0.63 s and completes its handshake at once. A longer loss may mean that the enclave closed it on
purpose."""

STEPPED_BACK_PAUSE: Final = 60.0
"""Seconds between two attempts of a relay that has stepped back: a third of the silence after which it may return."""


class Verdict(Enum):
    """What a failed attempt means for the enclave."""

    KEEP = "an attestation failed, but the tunnel stays up"
    """The peer and the uplink stay as they are. The relay tries again."""
    CLOSE = "the enclave is not provisioned"
    """There is no peer and no uplink until the enclave is attested. The relay tries again."""
    CONDEMN = "the enclave was refused"
    """As `CLOSE`, even if the tunnel works. If this relay launched the enclave, it also terminates it."""
    STEP_BACK = "this relay steps back for a newer one"
    """As `CLOSE`, but the relay tries again only rarely, so that two relays do not compete."""


def judge(error: WgvsockError, *, trusted: bool, alive: bool, lost: bool) -> Verdict:
    """The verdict on an attempt that ended with this error.

    Args:
        error: The error that ended it.
        trusted: Whether there is a peer whose last attestation is still valid.
        alive: Whether the peer's stream is connected and authenticated.
        lost: Whether the tunnel has been down for longer than the permitted interruption.
    """
    if isinstance(error, RejectedDocumentError) and error.final:
        return Verdict.CONDEMN
    # An enclave that says this also closes the tunnel. If the tunnel works, the message is not from the enclave.
    if isinstance(error, SupersededError) and not alive:
        return Verdict.STEP_BACK
    return Verdict.KEEP if trusted and not lost else Verdict.CLOSE


@dataclass(slots=True)
class Trust:
    """The last attestation: which enclave it attests, and how long it is valid. All times are in monotonic seconds.

    Attributes:
        module_id: The module_id of the attested enclave; None if there is none, or if it has an unknown form.
        attest_by: When the next attestation is due.
        until: When the present attestation expires if the next one fails.
        demanded: Whether an attestation was requested since the present exchange began.
    """

    module_id: str | None = None
    attest_by: float = -math.inf
    until: float = -math.inf
    demanded: bool = False
    _asked_for_loss: bool = False

    def grant(self, module_id: str, now: float, *, period: float, grace: float) -> None:
        """Record an attestation. It does not satisfy a request made during the exchange, as settings may have changed.

        Args:
            module_id: The enclave's module_id.
            now: The time.
            period: Seconds until the next attestation.
            grace: Seconds after that during which the attestation remains valid.
        """
        self.module_id = module_id if is_enclave_id(module_id) else None
        self.attest_by = now if self.demanded else now + period
        self.until = self.attest_by + grace

    def demand(self, now: float, *, grace: float) -> None:
        """Request an attestation now. The present one stays valid for at most `grace` seconds."""
        self.demanded = True
        self.attest_by = now
        self.until = min(self.until, now + grace)

    def revoke(self) -> None:
        """Forget the attestation, so that no enclave is trusted."""
        self.module_id, self.until = None, -math.inf

    def observe(self, now: float, lost_for: float) -> None:
        """Make an attestation due early if the tunnel has been down for a while.

        Args:
            now: The time.
            lost_for: Seconds since the tunnel was lost; 0 if it is up.
        """
        if not lost_for:
            self._asked_for_loss = False
        elif lost_for > ASK_AFTER_LOSS and not self._asked_for_loss:
            self._asked_for_loss = True
            self.attest_by = min(self.attest_by, now)
