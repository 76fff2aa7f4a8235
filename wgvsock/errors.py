"""Every exception that wgvsock raises on purpose. Any other exception that escapes is a bug.

The tree::

    WgvsockError
    ├── ConfigurationError            the operator's input is wrong                        exit 2
    ├── TransportError                bytes could not be carried                           exit 6
    │   └── FramingError              a stream stopped being a sequence of frames
    ├── ProtocolError
    │   ├── LocalProtocolError        we misused a protocol object: a bug in the caller
    │   └── RemoteProtocolError       the peer broke the protocol
    ├── AttestationError              a document was refused; one class per failed check   exit 5
    │   └── (see `wgvsock.attestation.errors`)
    ├── ProvisioningError             the provisioning exchange failed
    │   └── (see `wgvsock.provisioning.errors`)
    └── SystemSetupError              the kernel or a tool refused, or is missing          exit 7

An operator sees three lines: ``error[WGV-E012]: what`` / ``why: …`` / ``fix: …``. Every code is listed in
docs/errors.md, and a test keeps the two in step.
"""

from __future__ import annotations

from typing import ClassVar


class WgvsockError(Exception):
    """Root of the tree.

    Args:
        what: What could not be done, in one line, without a final full stop.
        why: The cause that was found. Never holds a secret, never echoes untrusted input verbatim.
        fix: What the operator can do about it.
    """

    code: ClassVar[str] = "WGV-E000"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


class ConfigurationError(WgvsockError):
    """A configuration, an argument or an address is invalid."""

    code = "WGV-E001"
    exit_code = 2


class TransportError(WgvsockError):
    """A connection could not be made, or broke."""

    code = "WGV-E010"
    exit_code = 6


class FramingError(TransportError):
    """The byte stream stopped being a sequence of frames and must be closed."""

    code = "WGV-E011"


class ProtocolError(WgvsockError):
    """A protocol was violated, by us or by the peer."""

    code = "WGV-E020"


class LocalProtocolError(ProtocolError):
    """The caller used a protocol object in a way that its state does not allow."""

    code = "WGV-E021"


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol's state does not allow."""

    code = "WGV-E022"


class AttestationError(WgvsockError):
    """An attestation document was refused.

    Each subclass names the failed check in `check`. ``wgvsock attest verify`` prints that word.
    """

    code = "WGV-E030"
    exit_code = 5
    check: ClassVar[str] = "attestation"


class ProvisioningError(WgvsockError):
    """The provisioning exchange did not end in an attested, configured enclave."""

    code = "WGV-E040"


class SystemSetupError(WgvsockError):
    """The kernel, a device node or a required tool is missing or refused the request."""

    code = "WGV-E050"
    exit_code = 7
