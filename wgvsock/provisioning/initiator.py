"""The relay's side of one exchange: HELLO, REQUEST, RESPONSE, RESULT, without I/O.

::

    AWAITING_HELLO --HELLO--> AWAITING_RESPONSE --RESPONSE--> CLOSED
           |                         |                          ^
           +-------------------------+--------------------------+
                 an ERROR, a mistake, a deadline or the end of the stream

Exactly one event comes out: `EnclaveProvisioned`, or `ProvisioningFailed` with the error that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from wgvsock.attestation import errors as checks
from wgvsock.errors import AttestationError
from wgvsock.provisioning import errors
from wgvsock.provisioning.capabilities import DEFAULT_CAPABILITIES, choose
from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.deadlines import DEFAULT_DEADLINES, Deadlines
from wgvsock.provisioning.errors import BadFieldError, BadFrameError, ExchangeError, WireCode, error_from_wire
from wgvsock.provisioning.events import EnclaveProvisioned, ProvisioningFailed, RelayEvent
from wgvsock.provisioning.frames import FrameReader, encode_frame
from wgvsock.provisioning.messages import (
    CLEAR_ERRORS,
    HELLO_LIMIT,
    KEY_BYTES,
    NONCE_BYTES,
    RESPONSE_LIMIT,
    Error,
    Request,
    Result,
    decode_clear_error,
    decode_hello,
    decode_response,
)
from wgvsock.provisioning.pin import sign_request
from wgvsock.provisioning.sealing import SealingKeys
from wgvsock.provisioning.transcript import Ephemeral, binding_hash, transcript_hash, user_data

if TYPE_CHECKING:  # as in `events`
    from wgvsock.attestation.policy import Expectations
    from wgvsock.attestation.verifier import AttestedEnclave, Verifier


class RelayState(Enum):
    """What the relay waits for."""

    AWAITING_HELLO = auto()
    AWAITING_RESPONSE = auto()
    CLOSED = auto()


_MESSAGE_LIMITS: Final[Mapping[RelayState, int]] = MappingProxyType(
    {RelayState.AWAITING_HELLO: HELLO_LIMIT, RelayState.AWAITING_RESPONSE: RESPONSE_LIMIT}
)

# How a failed check is reported to the enclave. Any check that is not listed is a fault of the document itself.
_BINDING_CHECKS: Final = (
    checks.PublicKeyError,
    checks.OwnPublicKeyError,
    checks.UserDataError,
    checks.WireguardKeyPcrError,
)
_POLICY_CHECKS: Final = (
    checks.PcrSetError,
    checks.LaunchedEnclaveError,
    checks.InstancePcrError,
    checks.RolePcrError,
    checks.ExpectedPcrError,
)


class RelayProvisioning:
    """One exchange with an enclave over one open connection.

    Args:
        config: The settings for the enclave. The exchange fills in the chosen capabilities.
        relay_public_key: The relay's WireGuard key, 32 bytes.
        verifier: Verifies the document.
        expectations: What the relay knows about the enclave. The exchange overwrites `user_data` and `own_public_key`.
        epoch_ms: Unix time in milliseconds. It has to be larger than in the relay's last request.
        random: Returns as many unpredictable bytes as requested.
        utc_now: The wall clock for the verifier, time-zone aware.
        now: Monotonic time in seconds.
        incarnation: When this relay's process started, Unix time in milliseconds.
        signing_seed: 32 secret bytes of the relay's Ed25519 key. If None, the request is not signed: an enclave with a
            pin refuses it, and one without a pin accepts no second request while this relay's tunnel is alive.
        connected_cid: CID of the connection, or None if it does not use vsock.
        launched_cid: EnclaveCID that the launcher reported, or None for an enclave that was not launched.
        capabilities: The relay's data plane capabilities, best first.
        deadlines: Time limits.

    Raises:
        ConfigRejectedError: `config` breaks one of its rules.
    """

    def __init__(
        self,
        *,
        config: TunnelConfig,
        relay_public_key: bytes,
        verifier: Verifier,
        expectations: Expectations,
        epoch_ms: int,
        random: Callable[[int], bytes],
        utc_now: Callable[[], datetime],
        now: float,
        incarnation: int = 0,
        signing_seed: bytes | None = None,
        connected_cid: int | None = None,
        launched_cid: int | None = None,
        capabilities: Sequence[str] = DEFAULT_CAPABILITIES,
        deadlines: Deadlines = DEFAULT_DEADLINES,
    ) -> None:
        config.validate()
        self._config = config
        self._relay_public_key = relay_public_key
        self._verifier = verifier
        self._expectations = expectations
        self._epoch_ms = epoch_ms
        self._incarnation = incarnation
        self._utc_now = utc_now
        self._signing_seed = signing_seed
        self._cids = (connected_cid, launched_cid)
        self._capabilities = tuple(capabilities)
        self._deadlines = deadlines
        self._nonce = random(NONCE_BYTES)
        self._ephemeral = Ephemeral(random(KEY_BYTES))
        # Set when REQUEST has been sent:
        self._keys: SealingKeys | None = None
        self._transcript = b""
        self._preshared_key = b""
        self._reader = FrameReader()
        self._outgoing = bytearray()
        self._event: RelayEvent | None = None
        self._state = RelayState.AWAITING_HELLO
        self._end_by = now + deadlines.exchange
        self._frame_by = now + deadlines.frame

    @property
    def state(self) -> RelayState:
        """What the relay waits for."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether the exchange is over: send the bytes of `data_to_send`, then close the connection."""
        return self._state is RelayState.CLOSED

    # Bytes and events.

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes from the enclave, in chunks of any size. `now` is monotonic seconds. Bad bytes never raise."""
        rest = memoryview(data)
        while rest and not self.closed:
            try:
                rest = self._receive_frame(rest, now)
            except (ExchangeError, AttestationError) as error:
                self._fail(error)

    def receive_eof(self) -> None:
        """Note that the enclave closed the connection, or that the connection broke."""
        self._close(errors.ConnectionLostError("the enclave closed the connection"))

    def data_to_send(self) -> bytes:
        """The bytes to send to the enclave since the last call."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def next_event(self) -> RelayEvent | None:
        """The outcome of the exchange, once. Before and afterwards None."""
        event, self._event = self._event, None
        return event

    # Time.

    def next_deadline(self) -> float | None:
        """When to call `handle_timers`, in monotonic seconds. None once closed."""
        return None if self.closed else min(self._frame_by, self._end_by)

    def handle_timers(self, now: float) -> None:
        """End the exchange if a deadline has passed."""
        deadline = self.next_deadline()
        if deadline is not None and now >= deadline:
            self._fail(errors.ExchangeTimeoutError("a deadline of the relay passed"))

    # Inside, in the order of the messages.

    def _receive_frame(self, data: memoryview, now: float) -> memoryview:
        waiting = not self._reader.started
        message, rest = self._reader.take(data, _MESSAGE_LIMITS[self._state])
        if message is not None:
            if self._state is RelayState.AWAITING_HELLO:
                self._receive_hello(message)
            elif (opened := self._open(message)) is not None:
                self._receive_response(opened)
        elif waiting and self._state is RelayState.AWAITING_RESPONSE:
            # The deadline of the exchange covers the work of the kernel and the security module. Once their answer
            # begins, it has to arrive at once.
            self._frame_by = now + self._deadlines.frame
        return rest

    def _receive_hello(self, message: bytes) -> None:
        hello = decode_hello(message)
        if isinstance(hello, Error):
            if hello.code not in CLEAR_ERRORS:
                raise BadFieldError("the enclave sent an error in the clear that has to be sealed")
            self._close(_reported(hello))
            return
        chosen = choose(hello.capabilities, self._capabilities)
        self._config = replace(self._config, capabilities=chosen)
        binding = binding_hash(message, self._ephemeral.public)
        request = Request(
            nonce=self._nonce,
            relay_public_key=self._relay_public_key,
            epoch_ms=self._epoch_ms,
            config=self._config.to_fields(),
            incarnation=self._incarnation,
        )
        if self._signing_seed is not None:
            request = sign_request(self._signing_seed, binding, request)
        self._keys = self._ephemeral.sealing_keys(hello.ephemeral, binding)
        sealed = self._ephemeral.public + self._keys.to_enclave.seal(request.encode(), binding)
        self._transcript = transcript_hash(message, sealed)
        self._preshared_key = self._ephemeral.preshared_key(hello.ephemeral, self._transcript)
        self._ephemeral.forget()
        self._expectations = replace(
            self._expectations, user_data=user_data(self._transcript), own_public_key=self._relay_public_key
        )
        self._outgoing += encode_frame(sealed)
        self._state = RelayState.AWAITING_RESPONSE
        self._frame_by = self._end_by

    def _open(self, message: bytes) -> bytes | None:
        """Open the third message. None if it was an ERROR in the clear, which ends the exchange."""
        assert self._keys is not None  # noqa: S101 - REQUEST has been sealed
        try:
            return self._keys.to_relay.open(message, self._transcript)
        except BadFrameError:
            self._close(_reported(decode_clear_error(message)))
            return None

    def _receive_response(self, message: bytes) -> None:
        response = decode_response(message)
        if isinstance(response, Error):
            self._close(_reported(response))
            return
        attested = self._attest(response.document)
        self._send_result(WireCode.OK)
        self._state = RelayState.CLOSED
        self._event = EnclaveProvisioned(attested, self._preshared_key, self._config, self._config.capabilities)

    def _attest(self, document: bytes) -> AttestedEnclave:
        connected, launched = self._cids
        if connected is not None and launched is not None and connected != launched:
            raise errors.PolicyError("the connection's CID is not that of the launched enclave")
        return self._verifier.verify_enclave(
            document, nonce=self._nonce, now=self._utc_now(), expectations=self._expectations
        )

    def _fail(self, error: ExchangeError | AttestationError) -> None:
        """End after a fault that this side found, and tell the enclave if it may have something to undo."""
        if self._state is RelayState.AWAITING_RESPONSE:
            self._send_result(_result_code(error))
        self._close(error)

    def _send_result(self, code: WireCode) -> None:
        assert self._keys is not None  # noqa: S101 - REQUEST has been sealed
        self._outgoing += encode_frame(self._keys.to_enclave.seal(Result(code).encode(), self._transcript))
        self._keys.forget()

    def _close(self, error: ExchangeError | AttestationError) -> None:
        if self.closed:
            return
        self._state = RelayState.CLOSED
        self._ephemeral.forget()
        if self._keys is not None:
            self._keys.forget()
        self._preshared_key = b""
        self._event = ProvisioningFailed(error)


def _reported(error: Error) -> ExchangeError:
    return error_from_wire(error.code, f"the enclave reported {error.detail!r}" if error.detail else "")


def _result_code(error: ExchangeError | AttestationError) -> WireCode:
    if isinstance(error, ExchangeError):
        return error.wire_code
    if isinstance(error, _BINDING_CHECKS):
        return WireCode.BINDING_MISMATCH
    if isinstance(error, _POLICY_CHECKS):
        return WireCode.POLICY
    return WireCode.ATTESTATION_REJECTED
