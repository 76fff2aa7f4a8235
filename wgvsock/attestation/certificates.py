"""The chain from the pinned root to the certificate that signed a document.

Check 5 of the verifier, in the order of the bundle: root, regional, zonal, instance, leaf. The rules are those of RFC
5280, section 6.1, narrowed to the one profile that AWS issues: version 3, P-384, ECDSA with SHA-384. Certificates are
checked against the verifier's clock, never against the document's own timestamp. Nothing is fetched (CRL, AIA).

cryptography only warns about some certificates that RFC 5280 forbids, and a later release may warn about others.
Warnings are ignored here: otherwise an update could cause genuine documents to be refused. Of the defects that it warns
about, the sign of the serial number (section 4.1.2.2) is checked here. The others are the lengths of names, which the
document's size bounds, and the text of certificate policies, which nothing processes.
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

_LEVELS: Final = ("root", "regional", "zonal", "instance", "leaf")  # of AWS's chains
_MAX_NAME_SHOWN: Final = 64  # characters: the most that a common name has (RFC 5280, appendix A.1, ub-common-name)

_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """Everything that the checks read from a certificate, parsed at once so that malformed DER fails only here."""

    label: str
    parsed: x509.Certificate
    serial_number: int
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
class Validity:
    """The period in which all certificates of a chain are valid, both ends included, UTC.

    `not_after` precedes `not_before` if there is no such period. `issued_to` is the leaf's common name.
    """

    not_before: datetime
    not_after: datetime
    issued_to: str


@dataclass(frozen=True, slots=True)
class Signer:
    """The leaf of a chain that passed: the key that signs the document, and the name that it was issued to."""

    public_key: ec.EllipticCurvePublicKey
    common_name: str


def verify_chain(cabundle: Sequence[bytes], leaf: bytes, *, accepted_roots: Iterable[bytes], now: datetime) -> Signer:
    """Check a chain of certificates.

    Args:
        cabundle: At least one DER certificate, root first, each the issuer of the next.
        leaf: DER certificate whose key signs the document.
        accepted_roots: SHA-256 digests of the root certificates (DER) to accept, 32 bytes each.
        now: The verifier's wall clock, time-zone aware.

    Raises:
        RejectedDocumentError: One of the ``chain.…`` classes.
    """
    _check_root(cabundle[0], accepted_roots)
    chain = _parse_chain(cabundle, leaf)
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


def read_validity(cabundle: Sequence[bytes], leaf: bytes) -> Validity:
    """Read the validity period of a chain and the name in its leaf, without any check.

    Args:
        cabundle: DER certificates, root first.
        leaf: DER certificate whose key signs the document.

    Raises:
        ChainParseError: A certificate is not well-formed.
    """
    chain = _parse_chain(cabundle, leaf)
    return Validity(
        not_before=max(certificate.not_before for certificate in chain),
        not_after=min(certificate.not_after for certificate in chain),
        issued_to=next(iter(chain[-1].common_names), ""),
    )


def _check_root(root: bytes, accepted_roots: Iterable[bytes]) -> None:
    fingerprint = hashlib.sha256(root).digest()
    if not any(hmac.compare_digest(fingerprint, accepted) for accepted in accepted_roots):
        raise errors.ChainRootError(
            f"the first certificate of the bundle, SHA-256 {fingerprint.hex()}, is not an accepted root"
        )


def _parse_chain(cabundle: Sequence[bytes], leaf: bytes) -> list[_Certificate]:
    encoded = (*cabundle, leaf)
    levels = _LEVELS if len(encoded) == len(_LEVELS) else ("root", *("authority",) * (len(encoded) - 2), "leaf")
    return [
        _parse(der, f"certificate {number} of {len(encoded)}", level)
        for number, (der, level) in enumerate(zip(encoded, levels, strict=True), start=1)
    ]


def _parse(der: bytes, place: str, level: str) -> _Certificate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see the module's docstring
            certificate = _read(der, place, level)
    except Exception:  # noqa: BLE001 - hostile bytes reach a parser whose exceptions share no base class
        raise errors.ChainParseError(f"{place} ({level}) is not well-formed") from None
    if certificate.serial_number <= 0:
        raise errors.ChainParseError(f"the serial number of {certificate.label} is not positive")
    return certificate


def _read(der: bytes, place: str, level: str) -> _Certificate:
    certificate = x509.load_der_x509_certificate(der)
    extensions = certificate.extensions
    basic_constraints = _extension(extensions, x509.BasicConstraints)
    key_usage = _extension(extensions, x509.KeyUsage)
    authority_key = _extension(extensions, x509.AuthorityKeyIdentifier)
    subject_key = _extension(extensions, x509.SubjectKeyIdentifier)
    common_names = tuple(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return _Certificate(
        label=f"{place} ({', '.join([level, *(f'CN {name[:_MAX_NAME_SHOWN]!a}' for name in common_names[:1])])})",
        parsed=certificate,
        serial_number=certificate.serial_number,
        public_key=certificate.public_key(),
        subject=certificate.subject.public_bytes(),
        issuer=certificate.issuer.public_bytes(),
        common_names=common_names,
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
        raise errors.ChainAlgorithmError(f"{certificate.label} is not X.509 version 3")
    if certificate.parsed.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise errors.ChainAlgorithmError(f"{certificate.label} is not signed with ECDSA and SHA-384")
    _p384_key(certificate)


def _p384_key(certificate: _Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise errors.ChainAlgorithmError(f"the key of {certificate.label} is not on P-384")
    return key


def _check_issued_by(child: _Certificate, parent: _Certificate) -> None:
    if child.issuer != parent.subject:
        raise errors.ChainIssuerError(f"{child.label} does not name the certificate before it as its issuer")
    try:
        child.parsed.verify_directly_issued_by(parent.parsed)
    except (InvalidSignature, ValueError, TypeError):
        # ValueError: the signature's algorithm differs inside and outside the signed part (RFC 5280, section 4.1.1.2).
        raise errors.ChainSignatureError(f"the signature of {child.label} is not its parent's") from None
    identifiers = (child.authority_key_identifier, parent.subject_key_identifier)
    if None not in identifiers and identifiers[0] != identifiers[1]:
        raise errors.ChainKeyIdentifierError(f"the authority key identifier of {child.label} is not its parent's")


def _check_validity(certificate: _Certificate, now: datetime) -> None:
    if now < certificate.not_before:
        raise errors.ChainValidityError(f"{certificate.label} is not valid before {certificate.not_before.isoformat()}")
    if now > certificate.not_after:
        raise errors.ChainValidityError(f"{certificate.label} expired at {certificate.not_after.isoformat()}")


def _check_authority(certificate: _Certificate, *, authorities_below: int) -> None:
    constraints, usage = certificate.basic_constraints, certificate.key_usage
    # RFC 5280, section 4.2.1.9: the extension has to be present, be critical, and mark the certificate as an authority.
    if constraints is None or not constraints.ca or not certificate.basic_constraints_critical:
        raise errors.ChainAuthorityError(f"{certificate.label} is not an authority")
    if usage is None or not usage.key_cert_sign:
        raise errors.ChainAuthorityError(f"the key of {certificate.label} may not sign certificates")
    if constraints.path_length is not None and constraints.path_length < authorities_below:
        raise errors.ChainPathLengthError(f"more authorities follow {certificate.label} than its path length allows")


def _check_leaf(certificate: _Certificate) -> None:
    constraints, usage = certificate.basic_constraints, certificate.key_usage
    if constraints is None or constraints.ca:
        raise errors.ChainLeafError(f"{certificate.label} is not marked as an end-entity certificate")
    if usage is None or not usage.digital_signature:
        raise errors.ChainLeafError(f"the key of {certificate.label} may not sign documents")
    if usage.key_cert_sign:
        raise errors.ChainLeafError(f"the key of {certificate.label} may sign certificates")


def _check_critical_extensions(certificate: _Certificate) -> None:
    # RFC 5280, section 4.2: a certificate with an unprocessed critical extension has to be rejected.
    if not certificate.critical_extensions <= _PROCESSED_EXTENSIONS:
        raise errors.ChainCriticalExtensionError(f"{certificate.label} has a critical extension that is not processed")


def _signer(leaf: _Certificate) -> Signer:
    if len(leaf.common_names) != 1:
        raise errors.ChainLeafError(f"{leaf.label} does not have exactly one common name")
    return Signer(public_key=_p384_key(leaf), common_name=leaf.common_names[0])
