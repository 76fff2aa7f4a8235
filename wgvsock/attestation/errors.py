"""One class for each check of a Nitro attestation document, in the order in which the verifier makes them.

All of them share the code WGV-E030. `check` tells them apart and is the word that ``wgvsock attest verify`` prints.
Each new check adds a class here, so that an operator and a test can name exactly what failed.

The tree::

    AttestationError
    └── RejectedDocumentError
        ├── DocumentSizeError           size
        ├── MalformedDocumentError      cbor
        ├── Cose…Error                  cose.structure  cose.protected  cose.unprotected
        ├── Payload…Error               payload.structure  payload.nitrotpm  payload.module_id  payload.digest  …
        ├── Chain…Error                 chain.root  chain.parse  chain.algorithm  chain.issuer  chain.sig  …
        ├── CoseSignatureError          cose.sig
        ├── ModuleIdError               module_id
        ├── Stale…, FutureDocumentError freshness.stale  freshness.future
        ├── …NonceError                 nonce.missing  nonce.short  nonce.mismatch
        ├── …Pcr…Error                  pcr.missing  pcr.debug  pcr.set  pcr.instance  pcr.role  pcr.expected  pcr.key
        ├── LaunchedEnclaveError        module_id.launched
        ├── PublicKeyError              public_key
        ├── UserDataError               user_data
        ├── ClientDomainError           user_data.domain
        └── TlsCertificateError         tls.certificate
    RemoteProtocolError
    └── CborError                       the received bytes are not strict CBOR
"""

from __future__ import annotations

from typing import ClassVar

from wgvsock.attestation.evidence import Evidence
from wgvsock.errors import AttestationError, RemoteProtocolError


class CborError(RemoteProtocolError):
    """The bytes are not exactly one item of strict CBOR (see `wgvsock.attestation.cbor`)."""

    code = "WGV-E031"


class RejectedDocumentError(AttestationError):
    """A document did not pass the check that `check` names.

    Args:
        why: What was found. Text from the document appears only as quoted printable ASCII of bounded length.
    """

    hint: ClassVar[str] = "do not trust this enclave; a genuine document comes from the Nitro Security Module unchanged"
    final: bool = False
    """Whether the intended enclave itself proved the mismatch, so that no later document from it can pass. `Verifier`
    sets it. Every other refusal may be caused by the host, which carries the messages."""
    evidence: Evidence | None = None
    """What the document says next to what is allowed. `Verifier` sets it when it refuses an enclave."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the attestation document was rejected by the check {self.check}", why=why, fix=self.hint)


# 1. Size.


class DocumentSizeError(RejectedDocumentError):
    """The document is empty, or larger than any that the Nitro Security Module makes."""

    check = "size"


# 2. CBOR.


class MalformedDocumentError(RejectedDocumentError):
    """The document or its payload is not strict CBOR."""

    check = "cbor"


# 3. COSE_Sign1 (RFC 9052, section 4.2).


class CoseStructureError(RejectedDocumentError):
    """The document is not an array of protected header, unprotected header, payload and a 96-byte signature."""

    check = "cose.structure"


class CoseProtectedHeaderError(RejectedDocumentError):
    """The protected header is not exactly "algorithm ES384"."""

    check = "cose.protected"


class CoseUnprotectedHeaderError(RejectedDocumentError):
    """The unprotected header is not empty."""

    check = "cose.unprotected"


# 4. Payload.


class PayloadStructureError(RejectedDocumentError):
    """The payload is not a map with text keys."""

    check = "payload.structure"


class NitroTpmDocumentError(RejectedDocumentError):
    """The document comes from a NitroTPM: it measures an EC2 instance, not an enclave."""

    check = "payload.nitrotpm"
    hint = "give a document from the enclave's own module (/dev/nsm); an instance's TPM does not measure its enclaves"


class PayloadModuleIdError(RejectedDocumentError):
    """The payload's module_id is missing, or is not short printable text."""

    check = "payload.module_id"


class PayloadDigestError(RejectedDocumentError):
    """The payload's digest is not "SHA384"."""

    check = "payload.digest"


class PayloadTimestampError(RejectedDocumentError):
    """The payload's timestamp is missing, or is not a plausible number of milliseconds."""

    check = "payload.timestamp"


class PayloadPcrsError(RejectedDocumentError):
    """The payload's pcrs are missing, or not 1 to 32 entries of 48 bytes each."""

    check = "payload.pcrs"


class PayloadCertificateError(RejectedDocumentError):
    """The payload's certificate is missing or not 1 to 1024 bytes."""

    check = "payload.certificate"


class PayloadCabundleError(RejectedDocumentError):
    """The payload's cabundle is missing, or not 1 to 5 certificates of 1 to 1024 bytes."""

    check = "payload.cabundle"


class PayloadPublicKeyError(RejectedDocumentError):
    """The payload's public_key is present, but is neither null nor a byte string of up to 1024 bytes."""

    check = "payload.public_key"


class PayloadUserDataError(RejectedDocumentError):
    """The payload's user_data is present, but is neither null nor a byte string of up to 1024 bytes."""

    check = "payload.user_data"


class PayloadNonceError(RejectedDocumentError):
    """The payload's nonce is present, but is neither null nor a byte string of up to 1024 bytes."""

    check = "payload.nonce"


# 5. Certificate chain (RFC 5280, section 6.1).


class ChainRootError(RejectedDocumentError):
    """The first certificate of the bundle is not an accepted root."""

    check = "chain.root"
    hint = 'add only a root that you trust as much as AWS\'s: --root-sha256, or "root_sha256" in [attestation]'


class ChainParseError(RejectedDocumentError):
    """A certificate is not well-formed X.509."""

    check = "chain.parse"


class ChainAlgorithmError(RejectedDocumentError):
    """A certificate is not version 3, on P-384 and signed with ECDSA and SHA-384."""

    check = "chain.algorithm"


class ChainIssuerError(RejectedDocumentError):
    """A certificate's issuer is not its parent's subject."""

    check = "chain.issuer"


class ChainSignatureError(RejectedDocumentError):
    """A certificate is not signed by its parent."""

    check = "chain.sig"


class ChainKeyIdentifierError(RejectedDocumentError):
    """A certificate's authority key identifier is not its parent's subject key identifier."""

    check = "chain.key_id"


class ChainValidityError(RejectedDocumentError):
    """A certificate is not yet valid, or has expired, according to the verifier's clock."""

    check = "chain.validity"
    hint = "compare this machine's clock with the enclave's; a stored document verifies for at most three hours"


class ChainAuthorityError(RejectedDocumentError):
    """A certificate of the bundle may not issue certificates."""

    check = "chain.authority"


class ChainPathLengthError(RejectedDocumentError):
    """An authority has more authorities below it than its pathLenConstraint allows."""

    check = "chain.path_length"


class ChainLeafError(RejectedDocumentError):
    """The signing certificate is an authority, its key may not sign documents, or it lacks a single common name."""

    check = "chain.leaf"


class ChainCriticalExtensionError(RejectedDocumentError):
    """A certificate has a critical extension that the verifier does not process."""

    check = "chain.critical"


# 6. Signature.


class CoseSignatureError(RejectedDocumentError):
    """The signing certificate's key did not make the signature over the received bytes."""

    check = "cose.sig"


# 7. The signer speaks for this module.


class ModuleIdError(RejectedDocumentError):
    """The signing certificate was issued for another module_id."""

    check = "module_id"


# 8. Freshness.


class StaleDocumentError(RejectedDocumentError):
    """The document is older than the policy accepts."""

    check = "freshness.stale"
    hint = "ask the enclave for a new document, and compare this machine's clock with the enclave's"


class FutureDocumentError(RejectedDocumentError):
    """The document is dated further ahead of the verifier's clock than the policy accepts."""

    check = "freshness.future"
    hint = "compare this machine's clock with the enclave's"


# 9. Nonce.


class MissingNonceError(RejectedDocumentError):
    """The document carries no nonce."""

    check = "nonce.missing"


class ShortNonceError(RejectedDocumentError):
    """The document's nonce is too short to be unguessable."""

    check = "nonce.short"


class NonceMismatchError(RejectedDocumentError):
    """The document's nonce is not the requested one: it answers another request."""

    check = "nonce.mismatch"


class MeasurementError(RejectedDocumentError):
    """Base of the refusals for a PCR's value: a genuine module measured something other than what is expected."""


# 10. Debug mode.


class MissingPcrError(MeasurementError):
    """The document lacks one of PCR0, PCR1 and PCR2."""

    check = "pcr.missing"


class DebugModeError(MeasurementError):
    """PCR0, PCR1 or PCR2 is zero: the enclave runs in debug mode, and the parent instance reads its console."""

    check = "pcr.debug"
    hint = "start the enclave without --debug-mode"


# 11. Measurements.


class PcrSetError(MeasurementError):
    """The PCRs match no allowed set: the policy does not know this image."""

    check = "pcr.set"
    hint = "if the image is yours, add the measurements that nitro-cli printed when you built it to the policy"


# 12. The one enclave that the relay expects.


class LaunchedEnclaveError(RejectedDocumentError):
    """The module_id belongs to neither the launched nor the previously attested enclave."""

    check = "module_id.launched"
    hint = "another enclave answers in its place; do not trust this path"


class InstancePcrError(MeasurementError):
    """PCR4 does not hold the expected parent instance."""

    check = "pcr.instance"


class RolePcrError(MeasurementError):
    """PCR3 does not hold the expected IAM role."""

    check = "pcr.role"


class ExpectedPcrError(MeasurementError):
    """A PCR does not hold the value that is expected of this enclave."""

    check = "pcr.expected"


# 13. The binding to this exchange.


class PublicKeyError(RejectedDocumentError):
    """The public_key is not an X25519 SubjectPublicKeyInfo, or is a key of small order."""

    check = "public_key"


class OwnPublicKeyError(RejectedDocumentError):
    """The public_key is the relay's own."""

    check = "public_key.own"
    hint = "something returned the relay's own key to it; do not trust this enclave"


class UserDataError(RejectedDocumentError):
    """The user_data is not the binding to the messages that the relay sent and received."""

    check = "user_data"
    hint = "something changed the messages between relay and enclave; do not trust this path"


class WireguardKeyPcrError(MeasurementError):
    """The PCR that commits to the WireGuard key does not hold the attested key."""

    check = "pcr.key"
    hint = "relay and enclave must name the same PCR, or none, and only the enclave's agent may extend it"


class ClientDomainError(RejectedDocumentError):
    """The document was made for another purpose, such as provisioning or the application's own use."""

    check = "user_data.domain"


class TlsCertificateError(RejectedDocumentError):
    """The connection that delivered the document does not end at the enclave."""

    check = "tls.certificate"
    hint = "something between you and the enclave terminates TLS: bypass it, or do not trust what it says"
