"""The enclave's side of one connection: HELLO, REQUEST, RESPONSE, RESULT, without I/O.

::

    AWAITING_REQUEST --REQUEST--> APPLYING --applied--> ATTESTING --document--> AWAITING_RESULT --RESULT--> CLOSED
           |                         |                      |                         |                       ^
           +-------------------------+----------------------+-------------------------+-----------------------+
              a mistake, a refusal, an eviction, a deadline or the end of the stream

Anyone can get as far as AWAITING_REQUEST. Only the proved relay gets further, with one exchange at a time.

The methods that answer an event do nothing once the exchange is closed: a deadline or the relay may end it while the
kernel or the security module is still working for it.
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
from wgvsock.provisioning.events import Assignment, AttestationNeeded
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
    split_request,
)
from wgvsock.provisioning.transcript import Ephemeral, binding_hash, transcript_hash, user_data

if TYPE_CHECKING:
    from wgvsock.provisioning.responder import EnclaveProvisioning
    from wgvsock.provisioning.sealing import SealingKeys


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
"""All steps forward. Any other pair is a mistake of the caller. Every state can also end early."""

_MESSAGE_LIMITS: Final[Mapping[ExchangeState, int]] = MappingProxyType(
    {ExchangeState.AWAITING_REQUEST: REQUEST_LIMIT, ExchangeState.AWAITING_RESULT: RESULT_LIMIT}
)
"""Longest message, in bytes, in the two states in which the relay may speak."""


class Exchange:
    """One connection. `EnclaveProvisioning.accept` makes it, with HELLO queued.

    Args:
        provisioning: The enclave that it belongs to.
        capabilities: The capabilities that HELLO offers.
        random: Returns as many unpredictable bytes as requested, for the nonce and the ephemeral key.
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
        # Set when the request has been opened:
        self._keys: SealingKeys | None = None
        self._transcript = b""
        # Set when it has been accepted:
        self._proved = False
        self._assignment: Assignment | None = None
        self._nonce = b""
        self._user_data = b""

    @property
    def state(self) -> ExchangeState:
        """What the exchange waits for."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether the exchange is over: send the bytes of `data_to_send`, then close the connection."""
        return self._state is ExchangeState.CLOSED

    @property
    def proved(self) -> bool:
        """Whether the other side has proved to be the relay that may provision the enclave."""
        return self._proved

    def evict(self) -> None:
        """End this exchange, which has sent no REQUEST yet, to make room for a newer connection."""
        self._fail(errors.BusyError("newer connections replaced one that had sent no request"))

    # Bytes.

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes from the relay, in chunks of any size. `now` is monotonic seconds. Bad bytes never raise."""
        rest = memoryview(data)
        while rest and not self.closed:
            try:
                rest = self._receive_frame(rest, now)
            except ExchangeError as error:
                self._fail(error)

    def receive_eof(self) -> None:
        """Note that the relay closed the connection, or that the connection broke."""
        self._fail(errors.ConnectionLostError("the relay closed the connection"))

    def data_to_send(self) -> bytes:
        """The bytes to send to the relay since the last call."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    # What the shell answers to events.

    def configuration_applied(self, wireguard_public_key: bytes, now: float) -> None:
        """Note that the offered assignment is in force, and ask for the attestation.

        Args:
            wireguard_public_key: The enclave's WireGuard key that is in force with it, 32 bytes. This key is attested.
            now: Monotonic time in seconds.

        Raises:
            LocalProtocolError: No assignment has been offered.
        """
        if self.closed:
            return
        self._advance(ExchangeInput.APPLIED, step_by=now + self._deadlines.secure_module)
        self._provisioning.applied(now)
        spki = encode_x25519_spki(wireguard_public_key)
        self._provisioning.emit(AttestationNeeded(self, self._nonce, spki, self._user_data))

    def configuration_failed(self) -> None:
        """Note that the offered assignment could not be applied. `ConfigurationRolledBack` follows."""
        self._fail(errors.InternalError("the enclave could not apply the configuration"))

    def attestation_ready(self, document: bytes, now: float) -> None:
        """Send the security module's document.

        Args:
            document: The document with the fields of `AttestationNeeded`, 1 to 12,288 bytes.
            now: Monotonic time in seconds.

        Raises:
            LocalProtocolError: No document was requested.
        """
        if self.closed:
            return
        if not 0 < len(document) <= DOCUMENT_LIMIT:
            self._fail(errors.SecureModuleError("the security module's document is empty or too long"))
            return
        self._advance(ExchangeInput.DOCUMENT, step_by=now + self._deadlines.frame)
        self._send(Response(document))

    def attestation_failed(self) -> None:
        """Note that the security module refused or could not be reached. `ConfigurationRolledBack` follows."""
        self._fail(errors.SecureModuleError("the security module refused or could not be reached"))

    # Time.

    def next_deadline(self) -> float | None:
        """When to call `handle_timers`, in monotonic seconds. None once closed."""
        return None if self.closed else min(self._step_by, self._end_by)

    def is_overdue(self, now: float) -> bool:
        """Whether a deadline has passed."""
        deadline = self.next_deadline()
        return deadline is not None and now >= deadline

    def handle_timers(self, now: float) -> None:
        """End the exchange if a deadline has passed."""
        if not self.is_overdue(now):
            return
        if self._state is ExchangeState.ATTESTING:
            self._fail(errors.SecureModuleError("the security module did not answer in time"))
        else:
            self._fail(errors.ExchangeTimeoutError("a deadline of the enclave passed"))

    # Inside.

    def _receive_frame(self, data: memoryview, now: float) -> memoryview:
        limit = _MESSAGE_LIMITS.get(self._state)
        if limit is None:
            raise errors.BadFrameError("bytes arrived while none were expected")
        message, rest = self._reader.take(data, limit)
        if message is not None:
            if self._state is ExchangeState.AWAITING_REQUEST:
                self._receive_request(message, now)
            else:
                self._receive_result(message)
        return rest

    def _receive_request(self, message: bytes, now: float) -> None:
        ephemeral, sealed = split_request(message)
        binding = binding_hash(self._hello, ephemeral)
        keys = self._ephemeral.sealing_keys(ephemeral, binding)
        encoded = keys.to_enclave.open(sealed, binding)
        # From here on the relay can open our messages, including an ERROR.
        self._keys, self._transcript = keys, transcript_hash(self._hello, message)
        request = decode_request(encoded)
        # Check the sender first, then the contents, and both before the kernel or the security module has any work.
        self._provisioning.authorise(request, binding, now)
        self._provisioning.begin(self)
        self._proved = True
        config = TunnelConfig.from_fields(request.config)
        check_choice(config.capabilities, self._offered)
        self._ephemeral.check_public_key(request.relay_public_key)
        preshared_key = self._ephemeral.preshared_key(ephemeral, self._transcript)
        self._ephemeral.forget()

        self._assignment = Assignment(
            request.relay_public_key, preshared_key, config, request.signer, request.epoch_ms, request.incarnation
        )
        self._nonce = request.nonce
        self._user_data = user_data(self._transcript)
        self._advance(ExchangeInput.REQUEST, step_by=self._end_by)
        self._provisioning.offer(self, self._assignment)

    def _receive_result(self, message: bytes) -> None:
        assert self._keys is not None  # noqa: S101 - RESPONSE has been sealed
        result = decode_result(self._keys.to_enclave.open(message, self._transcript))
        self._advance(ExchangeInput.RESULT, step_by=self._end_by)
        self._keys.forget()
        error = None
        if result.code != WireCode.OK:
            error = error_from_wire(result.code, "the relay reported it")
            self._provisioning.withdraw(self._assignment)
        self._provisioning.ended(self, error)

    def _advance(self, step: ExchangeInput, *, step_by: float) -> None:
        try:
            self._state = TRANSITIONS[self._state, step]
        except KeyError:
            raise LocalProtocolError(
                "a provisioning exchange was used out of order", why=f"{step.name} while {self._state.name}"
            ) from None
        self._step_by = step_by

    def _send(self, message: Response | Error) -> None:
        """Queue the third message, sealed, or in the clear if there are no keys yet."""
        encoded = message.encode()
        if self._keys is not None:
            encoded = self._keys.to_relay.seal(encoded, self._transcript)
        self._outgoing += encode_frame(encoded)
        self._provisioning.changed(self)

    def _fail(self, error: ExchangeError) -> None:
        """End early. Once the document is sent, only the relay's RESULT or the rollback timer undoes the assignment."""
        if self.closed:
            return
        answered = self._state is ExchangeState.AWAITING_RESULT
        self._state = ExchangeState.CLOSED
        self._ephemeral.forget()
        if isinstance(error, errors.ConnectionLostError):
            self._outgoing.clear()
        elif not answered:
            self._send(Error(error.wire_code, error.why))
        if self._keys is not None:
            self._keys.forget()
        if not answered:
            self._provisioning.withdraw(self._assignment)
        self._provisioning.ended(self, error)
