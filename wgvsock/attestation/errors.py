"""One class for each check of a Nitro attestation document, in the order in which the verifier makes them.

All of them share the code WGV-E030; `check` tells them apart, and is the word that ``wgvsock attest verify`` prints.
Whoever tightens or adds a check adds a class here, so that an operator and a test can name exactly what failed.

The tree::

    AttestationError
    └── RejectedDocumentError
        ├── DocumentSizeError           size
        ├── MalformedDocumentError      cbor
        ├── Cose…Error                  cose.structure  cose.protected  cose.unprotected
        ├── Payload…Error               payload.structure  payload.module_id  payload.digest  payload.timestamp  …
        ├── Chain…Error                 chain.root  chain.parse  chain.algorithm  chain.issuer  chain.sig  …
        ├── CoseSignatureError          cose.sig
        ├── ModuleIdError               module_id
        ├── Stale…, FutureDocumentError freshness.stale  freshness.future
        ├── …NonceError                 nonce.missing  nonce.short  nonce.mismatch
        ├── …Pcr…Error                  pcr.missing  pcr.debug  pcr.set  pcr.instance  pcr.role  pcr.expected  pcr.key
        ├── LaunchedEnclaveError        module_id.launched
        ├── PublicKeyError              public_key
        └── UserDataError               user_data
    RemoteProtocolError
    └── CborError                       what arrived is no strict CBOR
"""

from __future__ import annotations

from typing import ClassVar

from wgvsock.errors import AttestationError, RemoteProtocolError


class CborError(RemoteProtocolError):
    """The bytes are not exactly one item of strict CBOR (see `wgvsock.attestation.cbor`)."""

    code = "WGV-E031"


class RejectedDocumentError(AttestationError):
    """A document did not pass the check that `check` names.

    Args:
        why: What was found; never echoes text from the document.
    """

    hint: ClassVar[str] = "do not trust this enclave; a genuine document comes from the Nitro Security Module unchanged"

    def __init__(self, why: str) -> None:
        super().__init__(f"the attestation document was rejected by the check {self.check}", why=why, fix=self.hint)


# 1. Size.


class DocumentSizeError(RejectedDocumentError):
    """The document is empty, or larger than the Nitro Security Module ever makes one."""

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


class PayloadModuleIdError(RejectedDocumentError):
    """The payload's module_id is missing or is no short printable text."""

    check = "payload.module_id"


class PayloadDigestError(RejectedDocumentError):
    """The payload's digest is not "SHA384"."""

    check = "payload.digest"


class PayloadTimestampError(RejectedDocumentError):
    """The payload's timestamp is missing or is no plausible number of milliseconds."""

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
    """The payload's public_key is neither absent, null, nor a byte string in range."""

    check = "payload.public_key"


class PayloadUserDataError(RejectedDocumentError):
    """The payload's user_data is neither absent, null, nor a byte string in range."""

    check = "payload.user_data"


class PayloadNonceError(RejectedDocumentError):
    """The payload's nonce is neither absent, null, nor a byte string in range."""

    check = "payload.nonce"


# 5. Certificate chain (RFC 5280, section 6.1).


class ChainRootError(RejectedDocumentError):
    """The first certificate of the bundle is none of the accepted roots."""

    check = "chain.root"
    hint = "only a root that you trust as much as AWS's may be added with --root-sha256 or attestation-root-sha256"


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
    """A certificate is not yet, or no longer, valid at the verifier's clock."""

    check = "chain.validity"
    hint = "compare this machine's clock with the enclave's; a stored document verifies for at most three hours"


class ChainAuthorityError(RejectedDocumentError):
    """A certificate of the bundle may not issue certificates."""

    check = "chain.authority"


class ChainPathLengthError(RejectedDocumentError):
    """There are more certificates below an authority than its pathLenConstraint allows."""

    check = "chain.path_length"


class ChainLeafError(RejectedDocumentError):
    """The signing certificate is an authority, or may not sign."""

    check = "chain.leaf"


class ChainCriticalExtensionError(RejectedDocumentError):
    """A certificate has a critical extension that the verifier does not process."""

    check = "chain.critical"


# 6. Signature.


class CoseSignatureError(RejectedDocumentError):
    """The signature over the received bytes is not the signing certificate's."""

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
    """The document's nonce is not the one that was asked for: it answers another request."""

    check = "nonce.mismatch"


# 10. Debug mode.


class MissingPcrError(RejectedDocumentError):
    """The document lacks one of PCR0, PCR1 and PCR2."""

    check = "pcr.missing"


class DebugModeError(RejectedDocumentError):
    """PCR0, PCR1 or PCR2 is zero: the enclave runs in debug mode, and the parent instance reads its console."""

    check = "pcr.debug"
    hint = "start the enclave without --debug-mode"


# 11. Measurements.


class PcrSetError(RejectedDocumentError):
    """The PCRs equal none of the allowed sets: this is not an image that the policy knows."""

    check = "pcr.set"
    hint = "if the image is yours, add the measurements that nitro-cli printed when you built it to the policy"


# 12. The very enclave that the relay means.


class LaunchedEnclaveError(RejectedDocumentError):
    """The module_id is not the enclave that was launched."""

    check = "module_id.launched"


class InstancePcrError(RejectedDocumentError):
    """PCR4 does not hold the expected parent instance."""

    check = "pcr.instance"


class RolePcrError(RejectedDocumentError):
    """PCR3 does not hold the expected IAM role."""

    check = "pcr.role"


class ExpectedPcrError(RejectedDocumentError):
    """A PCR does not hold the value that was expected of this enclave."""

    check = "pcr.expected"


# 13. The binding to this exchange.


class PublicKeyError(RejectedDocumentError):
    """The public_key is no X25519 SubjectPublicKeyInfo."""

    check = "public_key"


class UserDataError(RejectedDocumentError):
    """The user_data is not the binding to the messages that the relay sent and received."""

    check = "user_data"
    hint = "somebody changed the messages between relay and enclave; do not trust this path"


class WireguardKeyPcrError(RejectedDocumentError):
    """The PCR that commits to the WireGuard key does not hold the attested key."""

    check = "pcr.key"
    hint = "relay and enclave have to name the same PCR, or none, and nothing but the enclave's agent may extend it"
