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
from typing import Final

from wgvsock.attestation import errors as checks
from wgvsock.attestation.policy import Expectations
from wgvsock.attestation.verifier import AttestedEnclave, Verifier
from wgvsock.errors import AttestationError
from wgvsock.provisioning import errors
from wgvsock.provisioning.capabilities import DEFAULT_CAPABILITIES, choose
from wgvsock.provisioning.config import TunnelConfig
from wgvsock.provisioning.deadlines import DEFAULT_DEADLINES, Deadlines
from wgvsock.provisioning.errors import ExchangeError, WireCode, error_from_wire
from wgvsock.provisioning.events import EnclaveProvisioned, ProvisioningFailed, RelayEvent
from wgvsock.provisioning.frames import FrameReader, encode_frame
from wgvsock.provisioning.messages import (
    HELLO_LIMIT,
    KEY_BYTES,
    NONCE_BYTES,
    RESPONSE_LIMIT,
    Error,
    Request,
    Result,
    decode_hello,
    decode_response,
)
from wgvsock.provisioning.pin import sign_request
from wgvsock.provisioning.transcript import Ephemeral, transcript_hash, user_data


class RelayState(Enum):
    """What the relay waits for."""

    AWAITING_HELLO = auto()
    AWAITING_RESPONSE = auto()
    CLOSED = auto()


_MESSAGE_LIMITS: Final[Mapping[RelayState, int]] = MappingProxyType(
    {RelayState.AWAITING_HELLO: HELLO_LIMIT, RelayState.AWAITING_RESPONSE: RESPONSE_LIMIT}
)

# How a failed check is reported to the enclave. Whatever is not listed is a fault of the document itself.
_BINDING_CHECKS: Final = (checks.PublicKeyError, checks.UserDataError, checks.WireguardKeyPcrError)
_POLICY_CHECKS: Final = (
    checks.PcrSetError,
    checks.LaunchedEnclaveError,
    checks.InstancePcrError,
    checks.RolePcrError,
    checks.ExpectedPcrError,
)


class RelayProvisioning:
    """One exchange with an enclave, over one connection that is already open.

    Args:
        config: The settings for the enclave; the exchange fills in the chosen capabilities.
        relay_public_key: The relay's WireGuard key, 32 bytes.
        verifier: Judges the document.
        expectations: What the relay knows of the enclave; `user_data` is computed here and overwrites what is given.
        epoch_ms: Unix time in milliseconds; has to be larger than in the relay's last request.
        random: Returns as many unpredictable bytes as asked for.
        utc_now: The wall clock that the document is judged by; aware.
        now: Monotonic time in seconds.
        signing_seed: 32 secret bytes of the relay's Ed25519 key. Without, the request is not signed: an enclave with a
            pin refuses it, and one without accepts no second one while this relay's tunnel is alive.
        connected_cid: CID that the connection leads to.
        launched_cid: EnclaveCID that the launcher reported.
        capabilities: What the relay can do on the data plane, best first.
        deadlines: Seconds for everything.

    Raises:
        ConfigRejectedError: `config` breaks a rule of its own.
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
        self._utc_now = utc_now
        self._signing_seed = signing_seed
        self._cids = (connected_cid, launched_cid)
        self._capabilities = tuple(capabilities)
        self._deadlines = deadlines
        self._nonce = random(NONCE_BYTES)
        self._ephemeral = Ephemeral(random(KEY_BYTES))
        self._preshared_key = b""  # known once REQUEST is complete
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
        """Whether the exchange is over: send what `data_to_send` gives, then close the connection."""
        return self._state is RelayState.CLOSED

    # Bytes and events.

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """Bytes from the enclave, in chunks of any size; nothing in them raises."""
        rest = memoryview(data)
        while rest and not self.closed:
            try:
                rest = self._receive_frame(rest, now)
            except (ExchangeError, AttestationError) as error:
                self._fail(error)

    def receive_eof(self) -> None:
        """The enclave closed the connection, or it broke."""
        self._close(errors.ConnectionLostError("the enclave closed the connection"))

    def data_to_send(self) -> bytes:
        """Bytes for the enclave since the last call."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def next_event(self) -> RelayEvent | None:
        """The outcome, once."""
        event, self._event = self._event, None
        return event

    # Time.

    def next_deadline(self) -> float | None:
        """When `handle_timers` has to be called, in monotonic seconds; None once closed."""
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
            else:
                self._receive_response(message)
        elif waiting and self._state is RelayState.AWAITING_RESPONSE:
            # The kernel and the security module have worked under the whole exchange's deadline; the bytes of their
            # answer come at once.
            self._frame_by = now + self._deadlines.frame
        return rest

    def _receive_hello(self, message: bytes) -> None:
        hello = decode_hello(message)
        if isinstance(hello, Error):
            self._close(_reported(hello))
            return
        chosen = choose(hello.capabilities, self._capabilities)
        self._config = replace(self._config, capabilities=chosen)
        request = Request(
            nonce=self._nonce,
            relay_public_key=self._relay_public_key,
            ephemeral=self._ephemeral.public,
            epoch_ms=self._epoch_ms,
            config=self._config.to_fields(),
        )
        if self._signing_seed is not None:
            request = sign_request(self._signing_seed, message, request)
        encoded = request.encode()
        transcript = transcript_hash(message, encoded)
        self._preshared_key = self._ephemeral.preshared_key(hello.ephemeral, transcript)
        self._ephemeral.forget()
        self._expectations = replace(self._expectations, user_data=user_data(transcript))
        self._outgoing += encode_frame(encoded)
        self._state = RelayState.AWAITING_RESPONSE
        self._frame_by = self._end_by

    def _receive_response(self, message: bytes) -> None:
        response = decode_response(message)
        if isinstance(response, Error):
            self._close(_reported(response))
            return
        attested = self._attest(response.document)
        self._outgoing += encode_frame(Result(WireCode.OK).encode())
        self._state = RelayState.CLOSED
        self._event = EnclaveProvisioned(attested, self._preshared_key, self._config, self._config.capabilities)

    def _attest(self, document: bytes) -> AttestedEnclave:
        connected, launched = self._cids
        if connected is not None and launched is not None and connected != launched:
            raise errors.PolicyError("the connection leads to another CID than the launched enclave's")
        return self._verifier.verify_enclave(
            document, nonce=self._nonce, now=self._utc_now(), expectations=self._expectations
        )

    def _fail(self, error: ExchangeError | AttestationError) -> None:
        """The fault was found here: the enclave is told, if it may have something to take back."""
        if self._state is RelayState.AWAITING_RESPONSE:
            self._outgoing += encode_frame(Result(_result_code(error)).encode())
        self._close(error)

    def _close(self, error: ExchangeError | AttestationError) -> None:
        if self.closed:
            return
        self._state = RelayState.CLOSED
        self._ephemeral.forget()
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
