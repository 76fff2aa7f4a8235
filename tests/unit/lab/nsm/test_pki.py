from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from lab.nsm.pki import CertificateDefect, Chain, LabAuthority, Level

MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
LEVELS = list(Level)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(clock: Clock) -> LabAuthority:
    return LabAuthority(clock)


def certificates(chain: Chain) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in (*chain.cabundle, chain.leaf.der)]


def shape(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, tuple[bool, object]]:
    """Extensions with their criticality. Identifiers and addresses are without their values."""
    return {
        extension.oid: (
            extension.critical,
            extension.value if isinstance(extension.value, x509.BasicConstraints | x509.KeyUsage) else None,
        )
        for extension in certificate.extensions
    }


def test_every_certificate_says_that_it_is_not_awss(authority: LabAuthority) -> None:
    for certificate in certificates(authority.chain(MODULE_ID)):
        name = certificate.subject.rfc4514_string()
        assert "O=wgvsock-lab" in name
        assert "OU=NOT-AWS" in name


def test_each_authority_has_a_root_of_its_own(authority: LabAuthority, clock: Clock) -> None:
    assert authority.root_fingerprint != LabAuthority(clock).root_fingerprint


def test_periods(authority: LabAuthority) -> None:
    lifetimes = [
        certificate.not_valid_after_utc - certificate.not_valid_before_utc
        for certificate in certificates(authority.chain(MODULE_ID))
    ]
    assert lifetimes[1:] == [
        timedelta(days=20, hours=1),
        timedelta(days=6),
        timedelta(hours=24),
        timedelta(hours=3, seconds=3),
    ]


def test_the_leaf_is_reused_for_two_hours(authority: LabAuthority, clock: Clock) -> None:
    first = authority.chain(MODULE_ID)
    clock.now += timedelta(minutes=100)
    assert authority.chain(MODULE_ID) == first
    clock.now += timedelta(minutes=30)
    second = authority.chain(MODULE_ID)
    assert second.leaf.der != first.leaf.der
    assert second.cabundle == first.cabundle


@pytest.mark.parametrize(
    ("later", "kept"),
    [(timedelta(hours=3), 4), (timedelta(hours=24), 3), (timedelta(days=6), 2), (timedelta(days=20), 1)],
)
def test_renewal_goes_down_the_chain(authority: LabAuthority, clock: Clock, later: timedelta, kept: int) -> None:
    before = certificates(authority.chain(MODULE_ID))
    clock.now += later
    after = certificates(authority.chain(MODULE_ID))
    assert [old == new for old, new in zip(before, after, strict=True)] == [True] * kept + [False] * (5 - kept)
    for parent, child in pairwise(after):
        child.verify_directly_issued_by(parent)


def test_enclaves_share_the_authorities_of_their_instance(authority: LabAuthority) -> None:
    one = authority.chain("i-0123456789abcdef0-enc1")
    two = authority.chain("i-0123456789abcdef0-enc2")
    elsewhere = authority.chain("i-0fedcba9876543210-enc1")
    assert one.cabundle == two.cabundle
    assert one.leaf.der != two.leaf.der
    assert one.cabundle[:3] == elsewhere.cabundle[:3]
    assert one.cabundle[3] != elsewhere.cabundle[3]


def test_a_defect_is_not_kept(authority: LabAuthority) -> None:
    good = authority.chain(MODULE_ID)
    for level in LEVELS:
        authority.chain(MODULE_ID, {level: CertificateDefect.EXPIRED})
    assert authority.chain(MODULE_ID) == good


@pytest.mark.parametrize("defect", CertificateDefect)
def test_every_defect_changes_the_certificate_it_names_and_no_other_shape(
    authority: LabAuthority, defect: CertificateDefect
) -> None:
    good = certificates(authority.chain(MODULE_ID))
    wrong = authority.chain(MODULE_ID, {Level.ZONAL: defect})
    for index in (0, 1, 3, 4):
        certificate = x509.load_der_x509_certificate((*wrong.cabundle, wrong.leaf.der)[index])
        assert shape(certificate) == shape(good[index])


def test_version_1_has_no_extensions(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID, {Level.LEAF: CertificateDefect.VERSION_1})
    leaf = x509.load_der_x509_certificate(chain.leaf.der)
    assert leaf.version is x509.Version.v1
    assert not list(leaf.extensions)
    leaf.verify_directly_issued_by(chain.authorities[-1].certificate)


def test_a_negative_serial_is_signed_like_any_other(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID, {Level.LEAF: CertificateDefect.NEGATIVE_SERIAL})
    with pytest.warns(Warning, match="serial number"):
        leaf = x509.load_der_x509_certificate(chain.leaf.der)
    with pytest.warns(Warning, match="serial number"):
        serial_number = leaf.serial_number
    assert serial_number == -1
    leaf.verify_directly_issued_by(chain.authorities[-1].certificate)


def test_serial_number_zero_is_signed_like_any_other(authority: LabAuthority) -> None:
    chain = authority.chain(MODULE_ID, {Level.LEAF: CertificateDefect.SERIAL_ZERO})
    with pytest.warns(Warning, match="serial number"):
        leaf = x509.load_der_x509_certificate(chain.leaf.der)
    with pytest.warns(Warning, match="serial number"):
        assert leaf.serial_number == 0
    leaf.verify_directly_issued_by(chain.authorities[-1].certificate)


def test_null_parameters_stand_inside_and_outside_of_the_signed_part(authority: LabAuthority) -> None:
    leaf = authority.chain(MODULE_ID, {Level.LEAF: CertificateDefect.NULL_PARAMETERS}).leaf
    assert leaf.der.count(bytes.fromhex("300c06082a8648ce3d0403030500")) == 2


def test_the_shape_is_that_of_real_documents(authority: LabAuthority, attestation_sample: Any) -> None:
    """Key identifiers apart: AWS's instance certificates have them since 2024 only."""
    payload = cbor2.loads(cbor2.loads(attestation_sample.data)[2])
    real = [x509.load_der_x509_certificate(der) for der in (*payload["cabundle"], payload["certificate"])]
    ours = certificates(authority.chain(MODULE_ID))
    identifiers = {ExtensionOID.SUBJECT_KEY_IDENTIFIER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}

    def shapes(chain: list[x509.Certificate]) -> list[dict[x509.ObjectIdentifier, tuple[bool, object]]]:
        return [
            {oid: value for oid, value in shape(certificate).items() if oid not in identifiers} for certificate in chain
        ]

    made_up = attestation_sample.expected["expect_today"] == "chain.root"
    assert (shapes(ours) == shapes(real)) != made_up
