"""The chain from the pinned root to the certificate that signed a document.

Check 5 of the verifier, in the order that the bundle has: root, regional, zonal, instance, leaf. The rules are those of
RFC 5280, section 6.1, narrowed to the one profile that AWS issues: version 3, P-384, ECDSA with SHA-384. Certificates
are checked against the verifier's clock, never against the document's own timestamp. Nothing is fetched (CRL, AIA).
"""

from __future__ import annotations

import hashlib
import hmac
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from wgvsock.attestation import errors

_PROCESSED_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }
)

_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What the checks read of a certificate, all of it parsed at once: malformed DER fails here and nowhere later."""

    parsed: x509.Certificate
    public_key: object
    subject: bytes
    issuer: bytes
    common_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    basic_constraints: x509.BasicConstraints | None
    basic_constraints_critical: bool
    key_usage: x509.KeyUsage | None
    authority_key_identifier: bytes | None
    subject_key_identifier: bytes | None
    critical_extensions: frozenset[x509.ObjectIdentifier]


@dataclass(frozen=True, slots=True)
class Signer:
    """The leaf of a chain that passed: whose key signs the document, and in whose name."""

    public_key: ec.EllipticCurvePublicKey
    common_name: str


def verify_chain(cabundle: Sequence[bytes], leaf: bytes, *, accepted_roots: Iterable[bytes], now: datetime) -> Signer:
    """Check a chain of certificates.

    Args:
        cabundle: DER certificates, root first, each the issuer of the next; at least one.
        leaf: DER certificate whose key signs the document.
        accepted_roots: SHA-256 digests of the root certificates (DER) to accept.
        now: The verifier's wall clock; aware.

    Raises:
        RejectedDocumentError: One of the ``chain.…`` classes.
    """
    _check_root(cabundle[0], accepted_roots)
    chain = [_parse(der) for der in (*cabundle, leaf)]
    for certificate in chain:
        _check_algorithms(certificate)
    for parent, child in pairwise(chain):
        _check_issued_by(child, parent)
    for certificate in chain:
        _check_validity(certificate, now)
    authorities, signer = chain[:-1], chain[-1]
    for index, authority in enumerate(authorities):
        _check_authority(authority, authorities_below=len(authorities) - 1 - index)
    _check_leaf(signer)
    for certificate in chain:
        _check_critical_extensions(certificate)
    return _signer(signer)


def _check_root(root: bytes, accepted_roots: Iterable[bytes]) -> None:
    fingerprint = hashlib.sha256(root).digest()
    if not any(hmac.compare_digest(fingerprint, accepted) for accepted in accepted_roots):
        raise errors.ChainRootError("the first certificate of the bundle is none of the accepted roots")


def _parse(der: bytes) -> _Certificate:
    try:
        with warnings.catch_warnings():
            # cryptography only warns about some violations of RFC 5280, such as a negative serial number.
            warnings.simplefilter("error")
            return _read(x509.load_der_x509_certificate(der))
    except Exception:  # noqa: BLE001 - hostile bytes meet a foreign parser that raises from no common root
        raise errors.ChainParseError("a certificate is not well-formed") from None


def _read(certificate: x509.Certificate) -> _Certificate:
    extensions = certificate.extensions
    basic_constraints = _extension(extensions, x509.BasicConstraints)
    key_usage = _extension(extensions, x509.KeyUsage)
    authority_key = _extension(extensions, x509.AuthorityKeyIdentifier)
    subject_key = _extension(extensions, x509.SubjectKeyIdentifier)
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _Certificate(
        parsed=certificate,
        public_key=certificate.public_key(),
        subject=certificate.subject.public_bytes(),
        issuer=certificate.issuer.public_bytes(),
        common_names=tuple(str(name.value) for name in common_names),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        basic_constraints=basic_constraints.value if basic_constraints else None,
        basic_constraints_critical=basic_constraints is not None and basic_constraints.critical,
        key_usage=key_usage.value if key_usage else None,
        authority_key_identifier=authority_key.value.key_identifier if authority_key else None,
        subject_key_identifier=subject_key.value.digest if subject_key else None,
        critical_extensions=frozenset(extension.oid for extension in extensions if extension.critical),
    )


def _extension(extensions: x509.Extensions, kind: type[_ExtensionT]) -> x509.Extension[_ExtensionT] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _check_algorithms(certificate: _Certificate) -> None:
    if certificate.parsed.version is not x509.Version.v3:
        raise errors.ChainAlgorithmError("a certificate is not X.509 version 3")
    if certificate.parsed.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise errors.ChainAlgorithmError("a certificate is not signed with ECDSA and SHA-384")
    _p384_key(certificate)


def _p384_key(certificate: _Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise errors.ChainAlgorithmError("a certificate's key is not on P-384")
    return key


def _check_issued_by(child: _Certificate, parent: _Certificate) -> None:
    if child.issuer != parent.subject:
        raise errors.ChainIssuerError("a certificate names another issuer than the one before it")
    try:
        child.parsed.verify_directly_issued_by(parent.parsed)
    except (InvalidSignature, ValueError, TypeError):
        # ValueError: the signature's algorithm differs inside and outside the signed part (RFC 5280, section 4.1.1.2).
        raise errors.ChainSignatureError("a certificate's signature is not its parent's") from None
    identifiers = (child.authority_key_identifier, parent.subject_key_identifier)
    if None not in identifiers and identifiers[0] != identifiers[1]:
        raise errors.ChainKeyIdentifierError("a certificate's authority key identifier is not its parent's")


def _check_validity(certificate: _Certificate, now: datetime) -> None:
    if now < certificate.not_before:
        raise errors.ChainValidityError(f"a certificate is not valid before {certificate.not_before.isoformat()}")
    if now > certificate.not_after:
        raise errors.ChainValidityError(f"a certificate expired at {certificate.not_after.isoformat()}")


def _check_authority(certificate: _Certificate, *, authorities_below: int) -> None:
    constraints, usage = certificate.basic_constraints, certificate.key_usage
    # RFC 5280, section 4.2.1.9: the extension has to be there, critical, and say that this is an authority.
    if constraints is None or not constraints.ca or not certificate.basic_constraints_critical:
        raise errors.ChainAuthorityError("a certificate of the bundle is no authority")
    if usage is None or not usage.key_cert_sign:
        raise errors.ChainAuthorityError("an authority's key may not sign certificates")
    if constraints.path_length is not None and constraints.path_length < authorities_below:
        raise errors.ChainPathLengthError("more authorities stand below an authority than it allows")


def _check_leaf(certificate: _Certificate) -> None:
    constraints, usage = certificate.basic_constraints, certificate.key_usage
    if constraints is None or constraints.ca:
        raise errors.ChainLeafError("the signing certificate does not say that it is no authority")
    if usage is None or not usage.digital_signature:
        raise errors.ChainLeafError("the signing certificate's key may not sign documents")
    if usage.key_cert_sign:
        raise errors.ChainLeafError("the signing certificate's key may sign certificates")


def _check_critical_extensions(certificate: _Certificate) -> None:
    # RFC 5280, section 4.2: whoever does not process a critical extension has to reject the certificate.
    if not certificate.critical_extensions <= _PROCESSED_EXTENSIONS:
        raise errors.ChainCriticalExtensionError("a certificate has a critical extension that is not processed")


def _signer(leaf: _Certificate) -> Signer:
    if len(leaf.common_names) != 1:
        raise errors.ChainLeafError("the signing certificate does not have exactly one common name")
    return Signer(public_key=_p384_key(leaf), common_name=leaf.common_names[0])
