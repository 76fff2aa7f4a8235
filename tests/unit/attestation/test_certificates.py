from __future__ import annotations

import hashlib
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import verification

from lab.nsm.pki import CertificateDefect, Chain, LabAuthority, Level
from wgvsock.attestation import errors
from wgvsock.attestation.certificates import Signer, read_validity, verify_chain
from wgvsock.attestation.document import parse_document
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
Defect = CertificateDefect
AUTHORITIES = (Level.ROOT, Level.REGIONAL, Level.ZONAL, Level.INSTANCE)


@pytest.fixture(scope="module")
def authority() -> LabAuthority:
    return LabAuthority(lambda: NOW)


def verified(chain: Chain, *, now: datetime = NOW, roots: tuple[bytes, ...] | None = None) -> Signer:
    pinned = roots or (hashlib.sha256(chain.cabundle[0]).digest(),)
    return verify_chain(chain.cabundle, chain.leaf.der, accepted_roots=pinned, now=now)


def rejected(chain: Chain, **arguments: Any) -> str:
    with pytest.raises(errors.RejectedDocumentError) as caught:
        verified(chain, **arguments)
    return caught.value.check


def test_a_chain_of_awss_shape_is_accepted(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID)
    signer = verified(chain, roots=(authority.root_fingerprint,))
    assert signer.public_key == chain.leaf.key.public_key()
    assert signer.common_name.startswith(f"{MODULE_ID}.")


def test_any_accepted_root_will_do(authority: LabAuthority) -> None:
    verified(authority.chain(MODULE_ID), roots=(AWS_NITRO_ROOT_G1, authority.root_fingerprint))


def test_another_root(authority: LabAuthority) -> None:
    assert rejected(authority.chain(MODULE_ID), roots=(AWS_NITRO_ROOT_G1,)) == "chain.root"
    assert rejected(LabAuthority(lambda: NOW).chain(MODULE_ID), roots=(authority.root_fingerprint,)) == "chain.root"


def test_the_root_is_looked_at_before_anything_is_parsed(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID, {Level.LEAF: Defect.MALFORMED, Level.ZONAL: Defect.EXPIRED})
    assert rejected(chain, roots=(AWS_NITRO_ROOT_G1,)) == "chain.root"


@pytest.mark.parametrize(
    ("level", "defect", "check"),
    [
        *((level, Defect.MALFORMED, "chain.parse") for level in Level),
        *((level, Defect.NEGATIVE_SERIAL, "chain.parse") for level in Level),
        *((level, Defect.SERIAL_ZERO, "chain.parse") for level in Level),
        *((level, Defect.NULL_PARAMETERS, "chain.parse") for level in Level),
        *((level, Defect.UNSUPPORTED_NAME, "chain.parse") for level in Level),
        *((level, Defect.VERSION_1, "chain.algorithm") for level in Level),
        *((level, Defect.SHA256, "chain.algorithm") for level in Level),
        *((level, Defect.P256, "chain.algorithm") for level in Level),
        *((level, Defect.OTHER_ISSUER, "chain.issuer") for level in Level if level is not Level.ROOT),
        *((level, Defect.BAD_SIGNATURE, "chain.sig") for level in Level if level is not Level.ROOT),
        *((level, Defect.OTHER_KEY_ID, "chain.key_id") for level in Level if level is not Level.ROOT),
        *((level, Defect.EXPIRED, "chain.validity") for level in Level),
        *((level, Defect.NOT_YET_VALID, "chain.validity") for level in Level),
        *((level, Defect.NO_BASIC_CONSTRAINTS, "chain.authority") for level in AUTHORITIES),
        *((level, Defect.UNCRITICAL_BASIC_CONSTRAINTS, "chain.authority") for level in AUTHORITIES),
        *((level, Defect.CA_FLIPPED, "chain.authority") for level in AUTHORITIES),
        *((level, Defect.NO_KEY_USAGE, "chain.authority") for level in AUTHORITIES),
        *((level, Defect.CERT_SIGN_FLIPPED, "chain.authority") for level in AUTHORITIES),
        *((level, Defect.PATH_TOO_LONG, "chain.path_length") for level in AUTHORITIES[:3]),
        *((level, Defect.UNKNOWN_CRITICAL_EXTENSION, "chain.critical") for level in Level),
        (Level.LEAF, Defect.NO_BASIC_CONSTRAINTS, "chain.leaf"),
        (Level.LEAF, Defect.CA_FLIPPED, "chain.leaf"),
        (Level.LEAF, Defect.NO_KEY_USAGE, "chain.leaf"),
        (Level.LEAF, Defect.NO_DIGITAL_SIGNATURE, "chain.leaf"),
        (Level.LEAF, Defect.CERT_SIGN_FLIPPED, "chain.leaf"),
        (Level.LEAF, Defect.TWO_COMMON_NAMES, "chain.leaf"),
    ],
)
def test_one_defect_at_one_level(authority: LabAuthority, level: Level, defect: Defect, check: str) -> None:
    with pytest.raises(errors.RejectedDocumentError) as caught:
        verified(authority.chain(MODULE_ID, {level: defect}))
    assert caught.value.check == check
    assert f"certificate {list(Level).index(level) + 1} of 5 ({level}" in caught.value.why


class LaterVersionWarning(UserWarning):
    """What a later version of cryptography might say about any certificate."""


@pytest.fixture
def wary_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    load = x509.load_der_x509_certificate

    def load_with_a_warning(der: bytes) -> x509.Certificate:
        warnings.warn("certificates of this kind will be refused one day", LaterVersionWarning, stacklevel=2)
        return load(der)

    monkeypatch.setattr(x509, "load_der_x509_certificate", load_with_a_warning)


@pytest.mark.usefixtures("wary_cryptography")
def test_a_warning_turns_no_genuine_chain_away(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID)
    assert verified(chain).common_name.startswith(f"{MODULE_ID}.")


@pytest.mark.usefixtures("wary_cryptography")
@pytest.mark.parametrize("defect", [Defect.NEGATIVE_SERIAL, Defect.SERIAL_ZERO])
def test_what_cryptography_only_warns_about_is_refused_all_the_same(authority: LabAuthority, defect: Defect) -> None:
    assert rejected(authority.chain(MODULE_ID, {Level.LEAF: defect})) == "chain.parse"


def test_a_name_is_shown_as_printable_ascii(authority: LabAuthority) -> None:
    chain = authority.chain("i-0\x1b[2J\u202e\n-enc0", {Level.LEAF: Defect.EXPIRED})
    with pytest.raises(errors.ChainValidityError) as caught:
        verified(chain)
    assert caught.value.why.isascii()
    assert caught.value.why.isprintable()
    assert r"certificate 5 of 5 (leaf, CN 'i-0\x1b[2J\u202e\n-enc0" in caught.value.why


def test_a_chain_of_another_length_counts_its_certificates(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID)
    root, regional, _zonal, instance = chain.authorities
    with pytest.raises(errors.ChainIssuerError, match=r"certificate 3 of 4 \(authority, CN "):
        verified(Chain(authorities=(root, regional, instance), leaf=chain.leaf))


def test_validity_without_any_check(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID, {Level.LEAF: Defect.BAD_SIGNATURE})
    certificates = [issued.certificate for issued in (*chain.authorities, chain.leaf)]
    validity = read_validity(chain.cabundle, chain.leaf.der)
    assert validity.not_before == max(certificate.not_valid_before_utc for certificate in certificates)
    assert validity.not_after == min(certificate.not_valid_after_utc for certificate in certificates)
    assert validity.issued_to.startswith(f"{MODULE_ID}.")
    with pytest.raises(errors.ChainParseError):
        read_validity(chain.cabundle, b"no certificate")


def test_a_leaf_cannot_issue_another_leaf(authority: LabAuthority) -> None:
    """The holder of a leaf's key must not extend the chain by one. Every signature in this one is valid."""
    chain = authority.chain(MODULE_ID)
    forged = authority._issue(Level.LEAF, "i-0-enc0.forged", chain.leaf, None)
    assert rejected(Chain(authorities=(*chain.authorities, chain.leaf), leaf=forged)) == "chain.path_length"


def test_the_order_of_the_bundle_matters(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID)
    root, regional, zonal, instance = chain.authorities
    assert rejected(Chain(authorities=(root, zonal, regional, instance), leaf=chain.leaf)) == "chain.issuer"
    assert rejected(Chain(authorities=(root, regional, zonal), leaf=chain.leaf)) == "chain.issuer"


def test_validity_ends_with_the_first_certificate_that_ends(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID)
    begins, ends = chain.leaf.certificate.not_valid_before_utc, chain.leaf.certificate.not_valid_after_utc
    assert ends - begins == timedelta(hours=3, seconds=3)
    verified(chain, now=begins)
    verified(chain, now=ends)
    assert rejected(chain, now=begins - timedelta(seconds=1)) == "chain.validity"
    assert rejected(chain, now=ends + timedelta(seconds=1)) == "chain.validity"


def test_an_rsa_certificate_is_not_on_p384(authority: LabAuthority) -> None:
    """A chain that is pinned but not of AWS's kind, down to the key."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(1))
    root = builder.sign(key, hashes.SHA384()).public_bytes(Encoding.DER)
    with pytest.raises(errors.ChainAlgorithmError):
        verify_chain([root], root, accepted_roots=[hashlib.sha256(root).digest()], now=NOW)


def second_opinion(cabundle: list[bytes] | tuple[bytes, ...], leaf: bytes, at: datetime) -> bool:
    """cryptography's own path validation, with a policy for certificates that have no subject alternative name."""
    present = verification.Criticality.AGNOSTIC
    ca_policy = (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)
        .require_present(x509.KeyUsage, present, None)
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([x509.load_der_x509_certificate(cabundle[0])]))
        .time(at.replace(tzinfo=None))
        .extension_policies(ee_policy=verification.ExtensionPolicy.permit_all(), ca_policy=ca_policy)
        .build_client_verifier()
    )
    try:
        verifier.verify(
            x509.load_der_x509_certificate(leaf), [x509.load_der_x509_certificate(der) for der in cabundle[1:]]
        )
    except verification.VerificationError:
        return False
    return True


def test_a_second_implementation_agrees(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID)
    assert second_opinion(chain.cabundle, chain.leaf.der, NOW)
    for level, defect in (
        (Level.LEAF, Defect.BAD_SIGNATURE),
        (Level.LEAF, Defect.EXPIRED),
        (Level.INSTANCE, Defect.BAD_SIGNATURE),
        (Level.ZONAL, Defect.EXPIRED),
        (Level.ZONAL, Defect.CA_FLIPPED),
        (Level.REGIONAL, Defect.PATH_TOO_LONG),
        (Level.INSTANCE, Defect.OTHER_ISSUER),
    ):
        wrong = authority.chain(MODULE_ID, {level: defect})
        assert not second_opinion(wrong.cabundle, wrong.leaf.der, NOW), (level, defect)


def test_real_chains(enclave_sample: Any) -> None:
    document = parse_document(enclave_sample.data)
    at = enclave_sample.at
    if enclave_sample.expected["expect_at_own_time"] == "chain.root":
        with pytest.raises(errors.ChainRootError):
            verify_chain(document.cabundle, document.certificate, accepted_roots=[AWS_NITRO_ROOT_G1], now=at)
        return
    verify_chain(document.cabundle, document.certificate, accepted_roots=[AWS_NITRO_ROOT_G1], now=at)
    assert second_opinion(document.cabundle, document.certificate, at)
    with pytest.raises(errors.ChainValidityError):
        verify_chain(
            document.cabundle, document.certificate, accepted_roots=[AWS_NITRO_ROOT_G1], now=at + timedelta(hours=4)
        )
