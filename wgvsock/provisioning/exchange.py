"""One connection to an enclave, seen from the enclave: HELLO, REQUEST, RESPONSE, RESULT, without I/O.

::

    AWAITING_REQUEST --REQUEST--> APPLYING --applied--> ATTESTING --document--> AWAITING_RESULT --RESULT--> CLOSED
           |                         |                      |                         |                       ^
           +-------------------------+----------------------+-------------------------+-----------------------+
                  a mistake, a refusal, a deadline or the end of the stream

The verbs that answer an event do nothing once the exchange is closed: a deadline or the relay may end it while the
kernel or the security module still works for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from wgvsock.attestation.binding import encode_x25519_spki
from wgvsock.errors import LocalProtocolError
from wgvsock.provisioning import errors
from wgvsock.provisioning.capabilities import check_choice
from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.errors import ExchangeError, WireCode, error_from_wire
from wgvsock.provisioning.events import Assignment, AttestationNeeded, ExchangeEnded
from wgvsock.provisioning.frames import FrameReader, encode_frame
from wgvsock.provisioning.messages import (
    DOCUMENT_LIMIT,
    KEY_BYTES,
    NONCE_BYTES,
    REQUEST_LIMIT,
    RESULT_LIMIT,
    Error,
    Hello,
    Response,
    decode_request,
    decode_result,
)
from wgvsock.provisioning.transcript import Ephemeral, transcript_hash, user_data

if TYPE_CHECKING:
    from wgvsock.provisioning.responder import EnclaveProvisioning


class ExchangeState(Enum):
    """What the exchange waits for."""

    AWAITING_REQUEST = auto()
    APPLYING = auto()
    ATTESTING = auto()
    AWAITING_RESULT = auto()
    CLOSED = auto()


class ExchangeInput(Enum):
    """What moves an exchange a step forward."""

    REQUEST = auto()
    APPLIED = auto()
    DOCUMENT = auto()
    RESULT = auto()


TRANSITIONS: Final[Mapping[tuple[ExchangeState, ExchangeInput], ExchangeState]] = MappingProxyType(
    {
        (ExchangeState.AWAITING_REQUEST, ExchangeInput.REQUEST): ExchangeState.APPLYING,
        (ExchangeState.APPLYING, ExchangeInput.APPLIED): ExchangeState.ATTESTING,
        (ExchangeState.ATTESTING, ExchangeInput.DOCUMENT): ExchangeState.AWAITING_RESULT,
        (ExchangeState.AWAITING_RESULT, ExchangeInput.RESULT): ExchangeState.CLOSED,
    }
)
"""Every step forward; a pair that is not here is a mistake of the caller. Every state can be ended early instead."""

_MESSAGE_LIMITS: Final[Mapping[ExchangeState, int]] = MappingProxyType(
    {ExchangeState.AWAITING_REQUEST: REQUEST_LIMIT, ExchangeState.AWAITING_RESULT: RESULT_LIMIT}
)
"""Longest message, in bytes, in the two states in which the relay may speak."""


class Exchange:
    """One connection; `EnclaveProvisioning.accept` makes it, with HELLO queued.

    Args:
        provisioning: The enclave that it belongs to.
        capabilities: What HELLO offers.
        random: Entropy for the nonce and the ephemeral.
        now: Monotonic time in seconds.
    """

    def __init__(
        self,
        provisioning: EnclaveProvisioning,
        capabilities: tuple[str, ...],
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        self._provisioning = provisioning
        self._deadlines = provisioning.deadlines
        self._offered = capabilities
        self._ephemeral = Ephemeral(random(KEY_BYTES))
        self._hello = Hello(random(NONCE_BYTES), self._ephemeral.public, capabilities).encode()
        self._outgoing = bytearray(encode_frame(self._hello))
        self._reader = FrameReader()
        self._state = ExchangeState.AWAITING_REQUEST
        self._end_by = now + self._deadlines.exchange
        self._step_by = now + self._deadlines.frame
        # Of the request, once it is accepted:
        self._assignment: Assignment | None = None
        self._nonce = b""
        self._user_data = b""

    @property
    def state(self) -> ExchangeState:
        """What the exchange waits for."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether the exchange is over: send what `data_to_send` gives, then close the connection."""
        return self._state is ExchangeState.CLOSED

    def refuse(self, error: ExchangeError) -> None:
        """End a new exchange with an ERROR in HELLO's place."""
        self._outgoing.clear()
        self._fail(error)

    # Bytes.

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """Bytes from the relay, in chunks of any size; nothing in them raises."""
        rest = memoryview(data)
        while rest and not self.closed:
            try:
                rest = self._receive_frame(rest, now)
            except ExchangeError as error:
                self._fail(error)

    def receive_eof(self) -> None:
        """The relay closed the connection, or it broke."""
        self._fail(errors.ConnectionLostError("the relay closed the connection"))

    def data_to_send(self) -> bytes:
        """Bytes for the relay since the last call."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    # What the shell answers to events.

    def configuration_applied(self, wireguard_public_key: bytes, now: float) -> None:
        """The offered assignment is in force.

        Args:
            wireguard_public_key: The enclave's WireGuard key that is in force with it, 32 bytes; it is the one to be
                attested.
            now: Monotonic time in seconds.

        Raises:
            LocalProtocolError: No assignment is offered.
        """
        if self.closed:
            return
        self._advance(ExchangeInput.APPLIED, step_by=now + self._deadlines.secure_module)
        self._provisioning.applied(now)
        spki = encode_x25519_spki(wireguard_public_key)
        self._provisioning.emit(AttestationNeeded(self, self._nonce, spki, self._user_data))

    def configuration_failed(self) -> None:
        """The offered assignment could not be put in force; a `ConfigurationRolledBack` follows."""
        self._fail(errors.InternalError("the enclave could not apply the configuration"))

    def attestation_ready(self, document: bytes, now: float) -> None:
        """The security module's document for the fields of `AttestationNeeded`.

        Raises:
            LocalProtocolError: No document was asked for.
        """
        if self.closed:
            return
        if not 0 < len(document) <= DOCUMENT_LIMIT:
            self._fail(errors.SecureModuleError("the security module's document is empty or too long"))
            return
        self._advance(ExchangeInput.DOCUMENT, step_by=now + self._deadlines.frame)
        self._outgoing += encode_frame(Response(document).encode())

    def attestation_failed(self) -> None:
        """The security module refused, or could not be asked; a `ConfigurationRolledBack` follows."""
        self._fail(errors.SecureModuleError("the security module refused or could not be reached"))

    # Time.

    def next_deadline(self) -> float | None:
        """When `handle_timers` has to be called, in monotonic seconds; None once closed."""
        return None if self.closed else min(self._step_by, self._end_by)

    def handle_timers(self, now: float) -> None:
        """End the exchange if a deadline has passed."""
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return
        if self._state is ExchangeState.ATTESTING:
            self._fail(errors.SecureModuleError("the security module did not answer in time"))
        else:
            self._fail(errors.ExchangeTimeoutError("a deadline of the enclave passed"))

    # Inside.

    def _receive_frame(self, data: memoryview, now: float) -> memoryview:
        limit = _MESSAGE_LIMITS.get(self._state)
        if limit is None:
            raise errors.BadFrameError("bytes arrived while none were due")
        message, rest = self._reader.take(data, limit)
        if message is not None:
            if self._state is ExchangeState.AWAITING_REQUEST:
                self._receive_request(message, now)
            else:
                self._receive_result(message)
        return rest

    def _receive_request(self, message: bytes, now: float) -> None:
        request = decode_request(message)
        # Who asks is settled before what is asked for, and both before the kernel or the security module has work.
        self._provisioning.authorise(request, self._hello, now)
        config = TunnelConfig.from_fields(request.config)
        check_choice(config.capabilities, self._offered)
        transcript = transcript_hash(self._hello, message)
        self._ephemeral.check_public_key(request.relay_public_key)
        preshared_key = self._ephemeral.preshared_key(request.ephemeral, transcript)
        self._ephemeral.forget()

        self._assignment = Assignment(request.relay_public_key, preshared_key, config, request.signer)
        self._nonce = request.nonce
        self._user_data = user_data(transcript)
        self._advance(ExchangeInput.REQUEST, step_by=self._end_by)
        self._provisioning.offer(self, self._assignment, request.epoch_ms)

    def _receive_result(self, message: bytes) -> None:
        result = decode_result(message)
        self._advance(ExchangeInput.RESULT, step_by=self._end_by)
        error = None
        if result.code != WireCode.OK:
            error = error_from_wire(result.code, "the relay reported it")
            self._provisioning.withdraw(self._assignment)
        self._provisioning.emit(ExchangeEnded(self, error))

    def _advance(self, step: ExchangeInput, *, step_by: float) -> None:
        try:
            self._state = TRANSITIONS[self._state, step]
        except KeyError:
            raise LocalProtocolError(
                "a provisioning exchange was driven out of order", why=f"{step.name} while {self._state.name}"
            ) from None
        self._step_by = step_by

    def _fail(self, error: ExchangeError) -> None:
        """End early. Once the document is out, only the relay's RESULT or the rollback timer takes anything back."""
        if self.closed:
            return
        answered = self._state is ExchangeState.AWAITING_RESULT
        self._state = ExchangeState.CLOSED
        self._ephemeral.forget()
        if isinstance(error, errors.ConnectionLostError):
            self._outgoing.clear()
        elif not answered:
            self._outgoing += encode_frame(Error(error.wire_code, error.why).encode())
        if not answered:
            self._provisioning.withdraw(self._assignment)
        self._provisioning.emit(ExchangeEnded(self, error))
