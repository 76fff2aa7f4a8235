"""A certificate authority like AWS's: root, regional, zonal, instance, leaf, all on P-384 and generated each time.

The periods, key usages, path lengths and missing extensions are those of real documents, so that the verifier is tested
with the same inputs. A `CertificateDefect` is a single error, at a chosen level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from lab.nsm.der import as_version_1, resigned, with_negative_serial, with_null_parameters, with_serial_zero

REGION: Final = "lab-nowhere-1"
_ROOT_NAME: Final = "aws.nitro-enclaves"

_UNKNOWN_EXTENSION: Final = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
_X400_NAME: Final = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3004a3020500"))
"""A kind of alternative name that cryptography does not parse, and for which it raises a special exception."""

_RENEW_BEFORE_EXPIRY: Final = timedelta(hours=1)


class Level(StrEnum):
    """The position of a certificate in the chain."""

    ROOT = "root"
    REGIONAL = "regional"
    ZONAL = "zonal"
    INSTANCE = "instance"
    LEAF = "leaf"


class CertificateDefect(StrEnum):
    """The single error of a certificate."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    MALFORMED = "malformed"
    NEGATIVE_SERIAL = "negative-serial"
    SERIAL_ZERO = "serial-zero"
    NULL_PARAMETERS = "null-parameters"
    UNSUPPORTED_NAME = "unsupported-name"
    VERSION_1 = "version-1"
    SHA256 = "sha256"
    P256 = "p256"
    OTHER_ISSUER = "other-issuer"
    BAD_SIGNATURE = "bad-signature"
    OTHER_KEY_ID = "other-key-id"
    NO_BASIC_CONSTRAINTS = "no-basic-constraints"
    UNCRITICAL_BASIC_CONSTRAINTS = "uncritical-basic-constraints"
    CA_FLIPPED = "ca-flipped"
    NO_KEY_USAGE = "no-key-usage"
    CERT_SIGN_FLIPPED = "cert-sign-flipped"
    NO_DIGITAL_SIGNATURE = "no-digital-signature"
    PATH_TOO_LONG = "path-too-long"
    UNKNOWN_CRITICAL_EXTENSION = "unknown-critical-extension"
    TWO_COMMON_NAMES = "two-common-names"


@dataclass(frozen=True, slots=True)
class _Profile:
    """What AWS puts into the certificates of one level."""

    age: timedelta  # at issue: how long it has been valid
    lifetime: timedelta
    path_length: int | None


_PROFILES: Final = {
    Level.ROOT: _Profile(timedelta(days=5 * 365), timedelta(days=30 * 365), None),
    Level.REGIONAL: _Profile(timedelta(days=4), timedelta(days=20, hours=1), 2),
    Level.ZONAL: _Profile(timedelta(hours=12), timedelta(days=6), 1),
    Level.INSTANCE: _Profile(timedelta(minutes=4), timedelta(hours=24), 0),
    Level.LEAF: _Profile(timedelta(seconds=3), timedelta(hours=3, seconds=3), None),
}


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key. `der` is what a document carries, damaged if a defect requires it."""

    certificate: x509.Certificate
    der: bytes
    key: ec.EllipticCurvePrivateKey
    issuer: Issued | None


@dataclass(frozen=True, slots=True)
class Chain:
    """The certificates of a document, root first, and the leaf whose key signs it."""

    authorities: tuple[Issued, ...]
    leaf: Issued

    @property
    def cabundle(self) -> list[bytes]:
        """DER certificates from the root down to the issuer of the leaf."""
        return [authority.der for authority in self.authorities]


class LabAuthority:
    """A root with the authorities below it, which are renewed as time passes.

    Args:
        clock: Returns aware wall-clock time.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._in_use: dict[str, Issued] = {}
        self._root = self._issue(Level.ROOT, _ROOT_NAME, None, None)

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (DER), for the verifier's pin."""
        return hashlib.sha256(self._root.der).digest()

    def chain(self, module_id: str, defects: Mapping[Level, CertificateDefect] | None = None) -> Chain:
        """Return the chain down to the leaf of one enclave. The leaf stays the same for two hours, as AWS reuses it.

        Args:
            module_id: The enclave.
            defects: The errors in the chain. Such a chain is generated and not kept. A defective root has its own
                fingerprint.
        """
        wrong = defects or {}
        names = {
            Level.REGIONAL: f"5eed000000000001.{REGION}.aws.nitro-enclaves",
            Level.ZONAL: f"5eed000000000002.zonal.{REGION}.aws.nitro-enclaves",
            Level.INSTANCE: f"{module_id.partition('-enc')[0]}.{REGION}.aws.nitro-enclaves",
            Level.LEAF: f"{module_id}.{REGION}.aws",
        }
        root_defect = wrong.get(Level.ROOT)
        issued = [self._issue(Level.ROOT, _ROOT_NAME, None, root_defect) if root_defect else self._root]
        for level, name in names.items():
            if wrong:
                issued.append(self._issue(level, name, issued[-1], wrong.get(level)))
            else:
                issued.append(self._current(level, name, issued[-1]))
        return Chain(authorities=tuple(issued[:-1]), leaf=issued[-1])

    def _current(self, level: Level, name: str, issuer: Issued) -> Issued:
        """Return the certificate in use, or a new one if it ends within the hour or its issuer was renewed."""
        known = self._in_use.get(name)
        renew_at = self._clock() + _RENEW_BEFORE_EXPIRY
        if known is None or known.issuer is not issuer or known.certificate.not_valid_after_utc < renew_at:
            known = self._in_use[name] = self._issue(level, name, issuer, None)
        return known

    def _issue(self, level: Level, name: str, issuer: Issued | None, defect: CertificateDefect | None) -> Issued:
        profile, now = _PROFILES[level], self._clock()
        key = ec.generate_private_key(ec.SECP384R1())
        signer = issuer.key if issuer else key
        if defect is CertificateDefect.BAD_SIGNATURE:
            signer = ec.generate_private_key(ec.SECP384R1())
        subject = _name(name, name) if defect is CertificateDefect.TWO_COMMON_NAMES else _name(name)
        issuer_name = issuer.certificate.subject if issuer else subject
        not_before, not_after = _validity(profile, now, defect)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name("somebody else") if defect is CertificateDefect.OTHER_ISSUER else issuer_name)
            .public_key(_certified_key(key, defect))
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        for extension, critical in _extensions(level, key, issuer, defect):
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(signer, hashes.SHA256() if defect is CertificateDefect.SHA256 else hashes.SHA384())
        return Issued(certificate, _damaged(certificate.public_bytes(Encoding.DER), signer, defect), key, issuer)


def _name(*common_names: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name) for common_name in common_names]
    return x509.Name(
        [
            *attributes,
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "NOT-AWS"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "wgvsock-lab"),
        ]
    )


def _validity(profile: _Profile, now: datetime, defect: CertificateDefect | None) -> tuple[datetime, datetime]:
    not_before = now - profile.age
    not_after = not_before + profile.lifetime
    if defect is CertificateDefect.EXPIRED:
        not_after = now - timedelta(seconds=2)
    if defect is CertificateDefect.NOT_YET_VALID:
        not_before = now + timedelta(minutes=1)
    return not_before, not_after


def _certified_key(key: ec.EllipticCurvePrivateKey, defect: CertificateDefect | None) -> ec.EllipticCurvePublicKey:
    if defect is CertificateDefect.P256:
        return ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_key()


def _extensions(
    level: Level, key: ec.EllipticCurvePrivateKey, issuer: Issued | None, defect: CertificateDefect | None
) -> Iterator[tuple[x509.ExtensionType, bool]]:
    """Yield the extensions of one level with their criticality."""
    profile, authority = _PROFILES[level], level is not Level.LEAF
    if defect is not CertificateDefect.NO_BASIC_CONSTRAINTS:
        ca = authority != (defect is CertificateDefect.CA_FLIPPED)
        path_length = profile.path_length if ca else None
        if defect is CertificateDefect.PATH_TOO_LONG:
            path_length = (path_length or 1) - 1
        yield (
            x509.BasicConstraints(ca=ca, path_length=path_length),
            defect is not CertificateDefect.UNCRITICAL_BASIC_CONSTRAINTS,
        )
    if defect is not CertificateDefect.NO_KEY_USAGE:
        yield _key_usage(level, defect), authority
    # AWS's leaf has neither key identifier.
    if issuer and (authority or defect is CertificateDefect.OTHER_KEY_ID):
        named = key if defect is CertificateDefect.OTHER_KEY_ID else issuer.key
        yield x509.AuthorityKeyIdentifier.from_issuer_public_key(named.public_key()), False
    if authority:
        yield x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
    if level in {Level.REGIONAL, Level.ZONAL}:
        yield x509.CRLDistributionPoints([_crl_of(level)]), False
    if defect is CertificateDefect.UNSUPPORTED_NAME:
        yield _X400_NAME, False
    if defect is CertificateDefect.UNKNOWN_CRITICAL_EXTENSION:
        yield _UNKNOWN_EXTENSION, True


def _crl_of(level: Level) -> x509.DistributionPoint:
    # Never fetched: the name does not resolve (RFC 6761, section 6.4).
    url = x509.UniformResourceIdentifier(f"http://crl-{REGION}.wgvsock-lab.invalid/crl/{level}.crl")
    return x509.DistributionPoint(full_name=[url], relative_name=None, reasons=None, crl_issuer=None)


def _key_usage(level: Level, defect: CertificateDefect | None) -> x509.KeyUsage:
    leaf = level is Level.LEAF
    digital_signature = level is not Level.INSTANCE and defect is not CertificateDefect.NO_DIGITAL_SIGNATURE
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=leaf,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=leaf == (defect is CertificateDefect.CERT_SIGN_FLIPPED),
        crl_sign=level in {Level.ROOT, Level.REGIONAL, Level.ZONAL},
        encipher_only=False,
        decipher_only=False,
    )


def _damaged(der: bytes, signer: ec.EllipticCurvePrivateKey, defect: CertificateDefect | None) -> bytes:
    match defect:
        case CertificateDefect.MALFORMED:
            return der[:-1]
        case CertificateDefect.VERSION_1:
            return resigned(der, signer, as_version_1)
        case CertificateDefect.NEGATIVE_SERIAL:
            return resigned(der, signer, with_negative_serial)
        case CertificateDefect.SERIAL_ZERO:
            return resigned(der, signer, with_serial_zero)
        case CertificateDefect.NULL_PARAMETERS:
            return resigned(der, signer, with_null_parameters)
        case _:
            return der
