"""Errors of a provisioning exchange: one class for each code that an ERROR or RESULT message can carry.

The tree, with the wire codes of docs/protocol/provisioning.md::

    ProvisioningError                 WGV-E040
    ├── ConnectionLostError           WGV-E040  -   the stream ended before the exchange did
    ├── MalformedMessageError         WGV-E041
    │   ├── BadFrameError                       1
    │   ├── BadCborError                        2
    │   ├── UnsupportedVersionError             3
    │   └── BadFieldError                       4
    ├── ConfigRejectedError           WGV-E042  5
    ├── NotAuthorisedError            WGV-E043
    │   ├── AuthRequiredError                   6
    │   ├── AuthFailedError                     7
    │   └── StaleEpochError                     9
    ├── AlreadyProvisionedError       WGV-E044  8
    │   └── SupersededError                     15
    ├── NotNowError                   WGV-E045
    │   ├── BusyError                           10
    │   └── RateLimitedError                    11
    ├── SecureModuleError             WGV-E046  12
    ├── ExchangeTimeoutError          WGV-E047  13
    ├── RefusedByRelayError           WGV-E048
    │   ├── AttestationRejectedError            32
    │   ├── BindingMismatchError                33
    │   └── PolicyError                         34
    └── InternalError                 WGV-E049  14  (and every code that this version does not know)

The side that finds a fault raises the class, and the other side rebuilds it from the code, so that a relay reports what
the enclave found. `why` is either a fixed sentence or the peer's checked detail text (`error_from_wire`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final

from wgvsock.errors import ProvisioningError


class WireCode(IntEnum):
    """The `code` of an ERROR or a RESULT message."""

    OK = 0
    BAD_FRAME = 1
    BAD_CBOR = 2
    UNSUPPORTED_VERSION = 3
    BAD_FIELD = 4
    CONFIG_REJECTED = 5
    AUTH_REQUIRED = 6
    AUTH_FAILED = 7
    ALREADY_PROVISIONED = 8
    STALE_EPOCH = 9
    BUSY = 10
    RATE_LIMITED = 11
    NSM_ERROR = 12
    TIMEOUT = 13
    INTERNAL = 14
    SUPERSEDED = 15
    ATTESTATION_REJECTED = 32
    BINDING_MISMATCH = 33
    POLICY = 34


class ExchangeError(ProvisioningError):
    """Base of the errors that have a wire code.

    Args:
        why: What was found.
    """

    wire_code: ClassVar[WireCode] = WireCode.INTERNAL
    summary: ClassVar[str] = "the provisioning exchange failed"
    hint: ClassVar[str] = "see the log of the other side for the same exchange"

    def __init__(self, why: str = "") -> None:
        super().__init__(self.summary, why=why, fix=self.hint)


class ConnectionLostError(ExchangeError):
    """The stream ended before the exchange did. No message can report it."""

    summary = "the connection ended before provisioning did"
    hint = "see the other side's last log line; the relay retries automatically"


class MalformedMessageError(ExchangeError):
    """A message breaks the rules of ``wgvsock/prov/1``."""

    code = "WGV-E041"
    hint = "make sure that both sides run compatible versions of wgvsock, and that this is the provisioning port"


class BadFrameError(MalformedMessageError):
    """A frame is empty, longer than its message may be, or unexpected."""

    wire_code = WireCode.BAD_FRAME
    summary = "a provisioning frame was refused"


class BadCborError(MalformedMessageError):
    """A frame is not exactly one item of deterministically encoded CBOR."""

    wire_code = WireCode.BAD_CBOR
    summary = "a provisioning message is not deterministic CBOR"


class UnsupportedVersionError(MalformedMessageError):
    """The message belongs to another version of the protocol."""

    wire_code = WireCode.UNSUPPORTED_VERSION
    summary = "the other side speaks another version of the provisioning protocol"
    hint = "use the same version of wgvsock in the relay and in the enclave image"


class BadFieldError(MalformedMessageError):
    """A field is missing, unknown, of the wrong type or out of range."""

    wire_code = WireCode.BAD_FIELD
    summary = "a field of a provisioning message was refused"


class ConfigRejectedError(ExchangeError):
    """The tunnel's configuration breaks a rule of docs/protocol/provisioning.md."""

    code = "WGV-E042"
    wire_code = WireCode.CONFIG_REJECTED
    summary = "the tunnel's configuration was rejected"
    hint = "correct addresses, routes, MTU and DNS in the relay's configuration"


class NotAuthorisedError(ExchangeError):
    """The request does not come from the relay that may provision this enclave."""

    code = "WGV-E043"


class AuthRequiredError(NotAuthorisedError):
    """The enclave image contains a relay pin, but the request is not signed."""

    wire_code = WireCode.AUTH_REQUIRED
    summary = "the enclave accepts only signed requests"
    hint = "give the relay the signing key whose public half is measured into the enclave image"


class AuthFailedError(NotAuthorisedError):
    """The request's signature is invalid, or was made with a key other than the pin."""

    wire_code = WireCode.AUTH_FAILED
    summary = "the enclave refused the relay's signature"
    hint = "give the relay the signing key whose public half is measured into the enclave image"


class StaleEpochError(NotAuthorisedError):
    """The request's epoch is not larger than that of the last relay that was active."""

    wire_code = WireCode.STALE_EPOCH
    summary = "the enclave has already accepted a request with the same or a later epoch"
    hint = "check the relay's clock; a second relay may be using the same signing key"


class AlreadyProvisionedError(ExchangeError):
    """Another relay serves this enclave."""

    code = "WGV-E044"
    wire_code = WireCode.ALREADY_PROVISIONED
    summary = "the enclave is provisioned by another relay"
    hint = (
        "keep the relay's signing key across restarts; a new relay is accepted once the other has been gone for 180 s"
    )


class SupersededError(AlreadyProvisionedError):
    """A relay that was started later, with the same signing key, serves this enclave."""

    wire_code = WireCode.SUPERSEDED
    summary = "a newer relay with the same signing key serves the enclave"
    hint = "stop one of the two; this one takes over once the other is gone for 180 s. If it is alone, set its clock"


class NotNowError(ExchangeError):
    """The listener cannot serve this connection at the moment."""

    code = "WGV-E045"
    hint = "none needed: the relay retries automatically"


class BusyError(NotNowError):
    """Another exchange is in progress, or newer connections evicted this one."""

    wire_code = WireCode.BUSY
    summary = "the enclave is busy with another provisioning exchange"


class RateLimitedError(NotNowError):
    """Connections arrive faster than the listener accepts them."""

    wire_code = WireCode.RATE_LIMITED
    summary = "provisioning connections arrive too fast"


class SecureModuleError(ExchangeError):
    """The Nitro Security Module gave no attestation document in time."""

    code = "WGV-E046"
    wire_code = WireCode.NSM_ERROR
    summary = "the enclave got no attestation document"
    hint = "see the enclave's log: /dev/nsm may be missing, or the module refused"


class ExchangeTimeoutError(ExchangeError):
    """A deadline of the exchange passed."""

    code = "WGV-E047"
    wire_code = WireCode.TIMEOUT
    summary = "the provisioning exchange took too long"
    hint = "none needed: the relay retries automatically; if it recurs, see the log of the other side"


class RefusedByRelayError(ExchangeError):
    """The relay did not accept the enclave. A RESULT message reports it."""

    code = "WGV-E048"
    hint = "see the relay's log, which names the check that failed"


class AttestationRejectedError(RefusedByRelayError):
    """The attestation document itself was refused."""

    wire_code = WireCode.ATTESTATION_REJECTED
    summary = "the relay refused the attestation document"


class BindingMismatchError(RefusedByRelayError):
    """The document is not bound to this exchange and this key."""

    wire_code = WireCode.BINDING_MISMATCH
    summary = "the attestation document belongs to another exchange or key"


class PolicyError(RefusedByRelayError):
    """The document is genuine, but the enclave or its code is not the expected one."""

    wire_code = WireCode.POLICY
    summary = "the relay's policy does not allow this enclave"


class InternalError(ExchangeError):
    """A side failed for an internal reason. Its log has the details."""

    code = "WGV-E049"
    wire_code = WireCode.INTERNAL
    summary = "the other side could not continue provisioning"


_BY_CODE: Final[dict[int, type[ExchangeError]]] = {
    kind.wire_code: kind
    for kind in (
        BadFrameError,
        BadCborError,
        UnsupportedVersionError,
        BadFieldError,
        ConfigRejectedError,
        AuthRequiredError,
        AuthFailedError,
        AlreadyProvisionedError,
        SupersededError,
        StaleEpochError,
        BusyError,
        RateLimitedError,
        SecureModuleError,
        ExchangeTimeoutError,
        InternalError,
        AttestationRejectedError,
        BindingMismatchError,
        PolicyError,
    )
}


def error_from_wire(code: int, why: str) -> ExchangeError:
    """Rebuild the error that the other side reported.

    Args:
        code: A non-zero code of an ERROR or a RESULT message. An unknown one becomes an `InternalError`.
        why: Our own words, or the peer's detail text after it was checked to be printable ASCII (`messages.Error`).
    """
    return _BY_CODE.get(code, InternalError)(why)
