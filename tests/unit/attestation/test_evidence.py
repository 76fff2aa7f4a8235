"""What is reported of a refusal: measured beside allowed, register by register, only from a genuine module."""

from __future__ import annotations

from typing import Any

import pytest

from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.evidence import Evidence, compare, difference, nearest
from wgvsock.attestation.policy import Expectations, PcrSet
from wgvsock.attestation.verifier import Verifier

A, B, C, D = (bytes([value]) * 48 for value in b"abcd")


def evidence_of(lab: Any, document: bytes, policy: Any, **expected: Any) -> Evidence:
    expectations = Expectations(**{"user_data": lab.user_data} | expected)
    with pytest.raises(RejectedDocumentError) as caught:
        Verifier(policy).verify_enclave(document, nonce=lab.nonce, now=lab.now, expectations=expectations)
    assert caught.value.evidence is not None
    return caught.value.evidence


def other_images(lab: Any) -> tuple[PcrSet, ...]:
    measured = lab.enclave.measurements
    return (PcrSet({0: A, 1: B, 2: C}, "v1"), PcrSet({0: A, 1: measured[1], 2: measured[2]}, "v2"))


def test_a_refused_image_is_told_register_by_register_beside_the_nearest_set(lab: Any, good: bytes) -> None:
    found = evidence_of(lab, good, lab.policy(pcr_sets=other_images(lab)))
    assert (found.nearest, found.sets, found.document) == ("v2", 2, good)
    assert found.module_id == lab.enclave.module_id
    (differs,) = found.differing
    assert (differs.name, differs.measured, differs.allowed) == ("PCR0", lab.enclave.measurements[0], A)
    plain = found.plain()
    assert plain["registers"][0] == {
        "pcr": "PCR0", "measured": lab.enclave.measurements[0].hex(), "allowed": A.hex(), "equal": False
    }  # fmt: skip
    assert [(each["pcr"], each["equal"]) for each in plain["registers"]] == [
        ("PCR0", False), ("PCR1", True), ("PCR2", True), ("PCR16", True)
    ]  # fmt: skip


def test_the_error_names_the_registers_and_the_set(lab: Any, good: bytes) -> None:
    with pytest.raises(RejectedDocumentError) as caught:
        Verifier(lab.policy(pcr_sets=other_images(lab))).verify(good, nonce=lab.nonce, now=lab.now)
    assert caught.value.why == 'PCR0 differs from the nearest of 2 allowed sets "v2"'


@pytest.mark.parametrize(
    ("expected", "register"),
    [
        ({"instance_id": "i-0000000000000000f"}, "PCR4"),
        ({"role_arn": "arn:aws:iam::123456789012:role/other"}, "PCR3"),
        ({"pcrs": {8: D}}, "PCR8"),
        ({"wireguard_key_pcr": 17}, "PCR17"),
    ],
)
def test_what_is_expected_of_one_enclave_is_told_too(
    lab: Any, good: bytes, expected: dict[str, Any], register: str
) -> None:
    found = evidence_of(lab, good, lab.policy(), **expected)
    assert [each.name for each in found.differing] == [register]


def test_of_a_document_that_no_genuine_module_signed_nothing_is_believed(lab: Any, good: bytes) -> None:
    found = evidence_of(lab, good, lab.policy(accepted_roots=(bytes(32),)))
    assert (found.module_id, dict(found.pcrs), found.registers, found.document) == (None, {}, (), good)


def test_of_a_genuine_document_that_is_too_old_the_module_is_known(lab: Any) -> None:
    found = evidence_of(lab, lab.document(clock_offset=-3600.0), lab.policy())
    assert found.module_id == lab.enclave.module_id


def test_an_enclave_under_a_new_policy(lab: Any, good: bytes) -> None:
    known = Expectations(user_data=lab.user_data)
    attested = Verifier(lab.policy()).verify_enclave(good, nonce=lab.nonce, now=lab.now, expectations=known)
    named = PcrSet(lab.enclave.measurements, "same")
    assert Verifier(lab.policy(pcr_sets=(named,))).check_attested(attested, known) == "same"
    with pytest.raises(RejectedDocumentError) as caught:
        Verifier(lab.policy(pcr_sets=other_images(lab))).check_attested(attested, known)
    assert caught.value.evidence is not None
    assert [each.name for each in caught.value.evidence.differing] == ["PCR0"]
    assert caught.value.evidence.document == b""


def test_which_set_matched_is_known(lab: Any, good: bytes) -> None:
    sets = (*other_images(lab), PcrSet(lab.enclave.measurements, "v3"))
    verifier = Verifier(lab.policy(pcr_sets=sets))
    known = Expectations(user_data=lab.user_data)
    assert verifier.verify_enclave(good, nonce=lab.nonce, now=lab.now, expectations=known).matched == "v3"


def test_a_missing_register_differs() -> None:
    (register,) = compare({}, {4: A})
    assert not register.matches
    assert Evidence(registers=(register,)).plain()["registers"][0]["measured"] is None


def test_the_difference_in_words() -> None:
    assert (
        difference({0: A, 1: A, 2: A}, [("", {0: B, 1: B, 2: B})]) == "PCR0, PCR1 and PCR2 differ from the allowed set"
    )
    assert difference({0: A, 1: A}, [("one", {0: B, 1: B})]) == 'PCR0 and PCR1 differ from the allowed set "one"'
    assert difference({0: A}, []) == "there is no allowed set"
    assert nearest({0: A}, []) == ("", {})
