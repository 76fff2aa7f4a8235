"""Tracks the attempts to attest one enclave: counts them, logs each change once, and reports results to waiters."""

from __future__ import annotations

import logging

from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.verifier import AttestedEnclave
from wgvsock.errors import AttestationError, WgvsockError
from wgvsock.relay.judgements import Judgements, Refusal
from wgvsock.relay.orders import Outcome, Waiters
from wgvsock.telemetry.logs import error_fields

_log = logging.getLogger(__name__)


class Attempts:
    """The attempts to attest one enclave.

    Args:
        enclave: The enclave's name.
        judgements: Records the verdict on each document.

    Attributes:
        counts: Number of attempts by result: ``ok``, ``failed``, ``rejected``.
        last_error: The error that ended the last attempt; None if it succeeded.
        refusal: The last refused document, however long ago; None if there was none.
    """

    def __init__(self, enclave: str, judgements: Judgements) -> None:
        self.counts = {"ok": 0, "failed": 0, "rejected": 0}
        self.last_error: WgvsockError | None = None
        self.refusal: Refusal | None = None
        self._enclave = enclave
        self._judgements = judgements
        self._asked, self._awaited = Waiters(), Waiters()

    def next_outcome(self) -> Outcome:
        """The future result of the next attempt that has not begun yet."""
        return self._asked.add()

    def begin(self) -> None:
        """Begin an attempt. All who have asked so far get its result."""
        self._awaited.take(self._asked)

    def succeed(self, attested: AttestedEnclave) -> None:
        """End the attempt with success: the enclave is attested and its tunnel is up."""
        self.counts["ok"] += 1
        self.last_error = None
        self._judgements.accepted(self._enclave, attested)
        self._awaited.settle(None)

    def fail(self, error: WgvsockError, meaning: str) -> None:
        """End the attempt with an error.

        Args:
            error: The error.
            meaning: What the error means for the enclave, as the log message.
        """
        self.counts["rejected" if isinstance(error, AttestationError) else "failed"] += 1
        repeated = self.last_error is not None and str(self.last_error) == str(error)
        self.last_error = error
        level = logging.DEBUG if repeated else logging.WARNING  # one line per change, not per attempt
        _log.log(level, "%s", meaning, extra=error_fields(error, enclave=self._enclave))
        if isinstance(error, RejectedDocumentError):
            self.refusal = self._judgements.refused(self._enclave, error)
        self._awaited.settle(error)
