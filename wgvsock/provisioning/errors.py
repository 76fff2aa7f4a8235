"""Why a provisioning exchange did not end well: one class for each code that can travel in an ERROR or RESULT message.

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

The same class is raised where the fault is found and rebuilt at the other end from the code that arrived, so that a
relay reports what the enclave found. `why` is always one of our own sentences: it never repeats what the peer sent.
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
    ATTESTATION_REJECTED = 32
    BINDING_MISMATCH = 33
    POLICY = 34


class ExchangeError(ProvisioningError):
    """Base of the errors that have a wire code.

    Args:
        why: What was found, in fixed words of ours.
    """

    wire_code: ClassVar[WireCode] = WireCode.INTERNAL
    summary: ClassVar[str] = "the provisioning exchange failed"
    hint: ClassVar[str] = "see the log of the other side for the same exchange"

    def __init__(self, why: str = "") -> None:
        super().__init__(self.summary, why=why, fix=self.hint)


class ConnectionLostError(ExchangeError):
    """The stream ended before the exchange did; nothing travels for it."""

    summary = "the connection ended before provisioning did"
    hint = "look for the other side's last log line; the relay tries again by itself"


class MalformedMessageError(ExchangeError):
    """A message is not what ``wgvsock/prov/1`` says."""

    code = "WGV-E041"
    hint = "make sure that both sides are wgvsock of compatible versions and that this is the provisioning port"


class BadFrameError(MalformedMessageError):
    """A frame is empty, longer than its message may be, or arrives where none is expected."""

    wire_code = WireCode.BAD_FRAME
    summary = "a provisioning frame was refused"


class BadCborError(MalformedMessageError):
    """A frame does not hold one item of deterministically encoded CBOR."""

    wire_code = WireCode.BAD_CBOR
    summary = "a provisioning message is not deterministic CBOR"


class UnsupportedVersionError(MalformedMessageError):
    """The message is of another version of the protocol."""

    wire_code = WireCode.UNSUPPORTED_VERSION
    summary = "the other side speaks another version of the provisioning protocol"
    hint = "bring relay and enclave image to the same version"


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
    """The enclave image holds a relay pin, and the request is not signed."""

    wire_code = WireCode.AUTH_REQUIRED
    summary = "the enclave accepts signed requests only"
    hint = "give the relay the signing key whose public half is measured into the enclave image"


class AuthFailedError(NotAuthorisedError):
    """The request's signature does not verify, or is by another key than the pin."""

    wire_code = WireCode.AUTH_FAILED
    summary = "the enclave refused the relay's signature"
    hint = "give the relay the signing key whose public half is measured into the enclave image"


class StaleEpochError(NotAuthorisedError):
    """The request's epoch is not larger than that of an accepted one."""

    wire_code = WireCode.STALE_EPOCH
    summary = "the enclave has accepted a request of the same or a later epoch"
    hint = "compare the relay's clock with the time; a second relay may be using the same signing key"


class AlreadyProvisionedError(ExchangeError):
    """Another relay serves this enclave."""

    code = "WGV-E044"
    wire_code = WireCode.ALREADY_PROVISIONED
    summary = "the enclave is provisioned by another relay"
    hint = "keep the relay's session file across restarts, or restart the enclave"


class NotNowError(ExchangeError):
    """The listener cannot take this connection at the moment."""

    code = "WGV-E045"
    hint = "nothing: the relay tries again by itself"


class BusyError(NotNowError):
    """Another exchange is going on."""

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
    hint = "read the enclave's log: /dev/nsm may be missing, or the module refused"


class ExchangeTimeoutError(ExchangeError):
    """A deadline of the exchange passed."""

    code = "WGV-E047"
    wire_code = WireCode.TIMEOUT
    summary = "the provisioning exchange took too long"
    hint = "nothing: the relay tries again by itself; see the log of the other side if it repeats"


class RefusedByRelayError(ExchangeError):
    """The relay did not accept the enclave; these travel in a RESULT message."""

    code = "WGV-E048"
    hint = "read the relay's log: it names the check that failed"


class AttestationRejectedError(RefusedByRelayError):
    """The attestation document itself was refused."""

    wire_code = WireCode.ATTESTATION_REJECTED
    summary = "the relay refused the attestation document"


class BindingMismatchError(RefusedByRelayError):
    """The document is not bound to this exchange and this key."""

    wire_code = WireCode.BINDING_MISMATCH
    summary = "the attestation document belongs to another exchange or key"


class PolicyError(RefusedByRelayError):
    """The document is genuine, but this is not the enclave or the code that the relay wants."""

    wire_code = WireCode.POLICY
    summary = "the relay's policy does not allow this enclave"


class InternalError(ExchangeError):
    """A side could not do what it had to; the details are in its own log."""

    code = "WGV-E049"
    wire_code = WireCode.INTERNAL
    summary = "the other side could not go on with provisioning"


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
        code: A non-zero code of an ERROR or a RESULT message; an unknown one becomes an `InternalError`.
        why: Words of ours, or the peer's detail text once it was checked to be printable ASCII (`messages.Error`).
    """
    return _BY_CODE.get(code, InternalError)(why)
