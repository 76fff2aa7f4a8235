from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pycose.keys import EC2Key
from pycose.keys.curves import P384
from pycose.messages import Sign1Message

from lab.nsm.pki import CertificateDefect, Level
from wgvsock.attestation import verifier
from wgvsock.attestation.binding import encode_x25519_spki, extended_pcr, wireguard_key_commitment
from wgvsock.attestation.document import parse_document
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.policy import AWS_NITRO_ROOT_G1, MIN_NONCE_SIZE, Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import AttestedEnclave, Verifier
from wgvsock.errors import LocalProtocolError

ANOTHER_KEY = b"\x09" + bytes(31)  # X25519's base point (RFC 7748, section 4.1)

P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def verify(
    lab: Any, document: bytes, *, policy: Any = None, nonce: bytes | None = None, late: timedelta = timedelta(0)
) -> Any:
    return Verifier(policy or lab.policy()).verify(
        document, nonce=lab.nonce if nonce is None else nonce, now=lab.now + late
    )


def attest(lab: Any, document: bytes, **expected: Any) -> AttestedEnclave:
    expectations = Expectations(**{"user_data": lab.user_data} | expected)
    return Verifier(lab.policy()).verify_enclave(document, nonce=lab.nonce, now=lab.now, expectations=expectations)


def rejected(call: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(RejectedDocumentError) as caught:
        call(*arguments, **keywords)
    return caught.value.check


def test_a_genuine_document_is_accepted(lab: Any, good: bytes) -> None:
    document = verify(lab, good)
    assert document.module_id == lab.enclave.module_id
    assert document.timestamp == lab.now
    assert {index: document.pcrs[index] for index in (0, 1, 2, 4)} == dict(lab.enclave.measurements)
    assert (document.nonce, document.user_data, document.public_key) == (lab.nonce, lab.user_data, lab.spki)


def test_a_tagged_document_is_accepted(lab: Any) -> None:
    verify(lab, lab.document(tagged=True))


def test_all_checks_make_an_attested_enclave(lab: Any, good: bytes) -> None:
    enclave = attest(lab, good, enclave_id=lab.enclave.module_id, instance_id="i-0123456789abcdef0")
    assert enclave.wireguard_public_key == lab.wireguard_public_key
    assert enclave.module_id == lab.enclave.module_id
    assert enclave.timestamp == lab.now
    assert enclave.pcrs[16] == extended_pcr(wireguard_key_commitment(lab.spki))


def test_nobody_else_can_declare_an_enclave_attested(lab: Any, good: bytes) -> None:
    enclave = attest(lab, good)
    fields = {field.name: getattr(enclave, field.name) for field in dataclasses.fields(enclave)}
    with pytest.raises(TypeError):
        AttestedEnclave(**fields)
    with pytest.raises(LocalProtocolError):
        AttestedEnclave(**fields, _made_by=object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(enclave, wireguard_public_key=bytes(32))  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        enclave.wireguard_public_key = bytes(32)  # type: ignore[misc]


# One negative for each check, in the verifier's order; the certificates' own are in test_certificates.py.


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        ({"trailing_bytes": 12_288}, "size"),
        ({"truncated_to": 0}, "size"),
        ({"trailing_bytes": 1}, "cbor"),
        ({"truncated_to": 2000}, "cbor"),
        ({"duplicate_key": True}, "cbor"),
        ({"der_signature": True}, "cose.structure"),
        ({"protected": bytes.fromhex("a10126")}, "cose.protected"),
        ({"without": ("module_id",)}, "payload.module_id"),
        ({"payload": {"digest": "SHA256"}}, "payload.digest"),
        ({"payload": {"timestamp": 0}}, "payload.timestamp"),
        ({"payload": {"pcrs": {}}}, "payload.pcrs"),
        ({"payload": {"certificate": b""}}, "payload.certificate"),
        ({"payload": {"cabundle": []}}, "payload.cabundle"),
        ({"payload": {"public_key": ""}}, "payload.public_key"),
        ({"payload": {"user_data": 1}}, "payload.user_data"),
        ({"payload": {"nonce": bytes(1025)}}, "payload.nonce"),
        ({"wrong_root": True}, "chain.root"),
        ({"certificates": {Level.LEAF: CertificateDefect.EXPIRED}}, "chain.validity"),
        ({"certificates": {Level.ZONAL: CertificateDefect.BAD_SIGNATURE}}, "chain.sig"),
        ({"corrupt_signature": True}, "cose.sig"),
        ({"leaf_module_id": "i-0123456789abcdef0-enc0123456789abcdee"}, "module_id"),
        ({"clock_offset": -120.001}, "freshness.stale"),
        ({"clock_offset": 30.001}, "freshness.future"),
        ({"without": ("nonce",)}, "nonce.missing"),
        ({"payload": {"nonce": None}}, "nonce.missing"),
        ({"payload": {"nonce": bytes(15)}}, "nonce.short"),
        ({"payload": {"nonce": bytes(32)}}, "nonce.mismatch"),
        ({"without_pcrs": (0,)}, "pcr.missing"),
        ({"without_pcrs": (1,)}, "pcr.missing"),
        ({"without_pcrs": (2,)}, "pcr.missing"),
        ({"debug": True}, "pcr.debug"),
        ({"pcrs": {0: bytes(48)}}, "pcr.debug"),
        ({"pcrs": {1: bytes(48)}}, "pcr.debug"),
        ({"pcrs": {2: bytes(48)}}, "pcr.debug"),
        ({"pcrs": {0: b"\x01" * 48}}, "pcr.set"),
        ({"pcrs": {1: b"\x01" * 48}}, "pcr.set"),
        ({"pcrs": {2: b"\x01" * 48}}, "pcr.set"),
        ({"pcrs": {4: b"\x01" * 48}}, "pcr.set"),
        ({"without_pcrs": (4,)}, "pcr.set"),
    ],
)
def test_one_fault_one_check(lab: Any, faults: dict[str, Any], check: str) -> None:
    assert rejected(verify, lab, lab.document(**faults)) == check


@pytest.mark.parametrize(
    ("faults", "expected", "check"),
    [
        ({"module_id": "i-0123456789abcdef0-enc0123456789abcdee"}, {"enclave_id": True}, "module_id.launched"),
        ({"module_id": "i-0fedcba9876543210-enc0123456789abcdef"}, {"enclave_id": True}, "module_id.launched"),
        ({"module_id": "not-an-enclave"}, {"enclave_id": True}, "module_id.launched"),
        ({}, {"instance_id": "i-0fedcba9876543210"}, "pcr.instance"),
        ({}, {"role_arn": "arn:aws:iam::123456789012:role/other"}, "pcr.role"),
        ({"pcrs": {8: b"\x01" * 48}}, {"pcrs": {8: b"\x02" * 48}}, "pcr.expected"),
        ({}, {"pcrs": {17: bytes(48)}}, "pcr.expected"),  # not locked: not in the document
        ({"without": ("public_key",)}, {}, "public_key"),
        ({"payload": {"public_key": bytes(32)}}, {}, "public_key"),
        ({"payload": {"user_data": None}}, {}, "user_data"),
        ({"payload": {"user_data": bytes(64)}}, {}, "user_data"),
        ({"payload": {"public_key": encode_x25519_spki(ANOTHER_KEY)}}, {}, "pcr.key"),
        ({"without_pcrs": (16,)}, {}, "pcr.key"),
        ({"pcrs": {16: bytes(48)}}, {}, "pcr.key"),
        ({}, {"wireguard_key_pcr": 17}, "pcr.key"),
    ],
)
def test_one_difference_from_what_is_expected(lab: Any, faults: Any, expected: Any, check: str) -> None:
    if "enclave_id" in expected:
        expected = expected | {"enclave_id": lab.enclave.module_id}
    assert rejected(attest, lab, lab.document(**faults), **expected) == check


def test_expectations_that_hold(lab: Any) -> None:
    role = "arn:aws:iam::123456789012:role/relay"
    document = lab.document(pcrs={3: extended_pcr(role.encode()), 8: b"\x08" * 48})
    attest(lab, document, role_arn=role, pcrs={8: b"\x08" * 48}, enclave_id="i-0123456789abcdef0-enc123456789abcdef")


def test_nothing_is_not_equal_to_nothing(lab: Any) -> None:
    for empty in (None, b""):
        assert rejected(attest, lab, lab.document(payload={"user_data": empty}), user_data=b"") == "user_data"


def test_without_a_key_pcr_the_document_alone_binds_the_key(lab: Any) -> None:
    other = encode_x25519_spki(ANOTHER_KEY)
    enclave = attest(lab, lab.document(payload={"public_key": other}), wireguard_key_pcr=None)
    assert enclave.wireguard_public_key == ANOTHER_KEY


@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
def test_a_key_of_small_order_is_nobodys(lab: Any, point: int) -> None:
    """Points of order 1, 2 and 4 on curve and twist, canonical and not (RFC 7748, section 6.1)."""
    weak = encode_x25519_spki(point.to_bytes(32, "little"))
    assert rejected(attest, lab, lab.document(payload={"public_key": weak}), wireguard_key_pcr=None) == "public_key"


def test_the_relay_s_own_key_is_no_enclave_s(lab: Any, good: bytes) -> None:
    own = lab.wireguard_public_key
    assert rejected(attest, lab, good, own_public_key=own) == "public_key.own"
    assert rejected(attest, lab, good, own_public_key=own[:31] + bytes((own[31] ^ 0x80,))) == "public_key.own"
    attest(lab, good, own_public_key=ANOTHER_KEY)


# The order: what is reported when more than one thing is wrong.


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        ({"wrong_root": True, "certificates": {Level.LEAF: CertificateDefect.EXPIRED}}, "chain.root"),
        ({"corrupt_signature": True, "certificates": {Level.ROOT: CertificateDefect.EXPIRED}}, "chain.root"),
        ({"corrupt_signature": True, "certificates": {Level.LEAF: CertificateDefect.EXPIRED}}, "chain.validity"),
        ({"corrupt_signature": True, "debug": True}, "cose.sig"),
        ({"debug": True, "clock_offset": -1000.0}, "freshness.stale"),
        ({"debug": True, "payload": {"nonce": bytes(32)}}, "nonce.mismatch"),
    ],
)
def test_the_first_failed_check_is_the_one_named(lab: Any, faults: dict[str, Any], check: str) -> None:
    assert rejected(verify, lab, lab.document(**faults)) == check


# Whose word a refusal is.

ANOTHER_ENCLAVE = "i-0fedcba9876543210-enc0123456789abcdef"
OTHER_CODE = {0: b"\x01" * 48}


@pytest.mark.parametrize(
    "faults", [{"pcrs": OTHER_CODE}, {"debug": True}, {"without_pcrs": (0,)}, {"pcrs": {4: b"\x01" * 48}}], ids=str
)
def test_another_enclave_is_refused_as_that_whatever_its_pcrs(lab: Any, faults: dict[str, Any]) -> None:
    """A genuine document of the attacker's own enclave says nothing about the one that was launched."""
    swapped = lab.document(module_id=ANOTHER_ENCLAVE, **faults)
    assert rejected(attest, lab, swapped, enclave_id=lab.enclave.module_id) == "module_id.launched"


@pytest.mark.parametrize(
    ("faults", "expected", "check"),
    [
        ({"pcrs": OTHER_CODE}, {}, "pcr.set"),
        ({"debug": True}, {}, "pcr.debug"),
        ({"without_pcrs": (1,)}, {}, "pcr.missing"),
        ({}, {"instance_id": "i-0fedcba9876543210"}, "pcr.instance"),
        ({}, {"role_arn": "arn:aws:iam::123456789012:role/other"}, "pcr.role"),
        ({}, {"pcrs": {8: b"\x02" * 48}}, "pcr.expected"),
        ({"pcrs": {16: bytes(48)}}, {}, "pcr.key"),
    ],
)
def test_what_the_meant_enclave_measures_is_final(lab: Any, faults: Any, expected: Any, check: str) -> None:
    for meant in (lab.enclave.module_id, None):
        with pytest.raises(RejectedDocumentError) as caught:
            attest(lab, lab.document(**faults), **expected, enclave_id=meant)
        assert caught.value.check == check
        assert caught.value.final is (meant is not None)  # of an unknown enclave nothing is


@pytest.mark.parametrize(
    "faults",
    [
        {"module_id": ANOTHER_ENCLAVE, "pcrs": OTHER_CODE},
        {"leaf_module_id": ANOTHER_ENCLAVE, "pcrs": OTHER_CODE},
        {"corrupt_signature": True, "pcrs": OTHER_CODE},
        {"wrong_root": True, "pcrs": OTHER_CODE},
        {"clock_offset": -1000.0, "pcrs": OTHER_CODE},
        {"payload": {"nonce": bytes(32)}, "pcrs": OTHER_CODE},
        {"payload": {"user_data": bytes(64)}},
        {"payload": {"user_data": bytes(64)}, "pcrs": {16: bytes(48)}},
        {"payload": {"public_key": bytes(44)}},
        {"truncated_to": 100},
    ],
    ids=str,
)
def test_what_anybody_on_the_way_can_bring_about_is_never_final(lab: Any, faults: dict[str, Any]) -> None:
    with pytest.raises(RejectedDocumentError) as caught:
        attest(lab, lab.document(**faults), enclave_id=lab.enclave.module_id)
    assert not caught.value.final


# Known mistakes of other verifiers.


def test_certificates_are_checked_at_the_verifiers_clock(lab: Any) -> None:
    """Mistake: certificate times checked at the document's own timestamp, so that it is always valid."""
    document = lab.document()
    patient = lab.policy(max_age=timedelta(days=365))
    verify(lab, document, policy=patient, late=timedelta(hours=2))
    assert rejected(verify, lab, document, policy=patient, late=timedelta(hours=4)) == "chain.validity"
    assert rejected(verify, lab, document, policy=patient, late=timedelta(hours=-4)) == "chain.validity"


def test_freshness_has_two_sides(lab: Any) -> None:
    """Mistake: documents from the future are accepted."""
    for offset in (-120.0, 0.0, 30.0):
        verify(lab, lab.document(clock_offset=offset))
    assert rejected(verify, lab, lab.document(clock_offset=3600.0)) == "freshness.future"
    assert rejected(verify, lab, lab.document(payload={"timestamp": (1 << 53) - 1})) == "freshness.future"
    strict = lab.policy(max_age=timedelta(0), max_future=timedelta(0))
    verify(lab, lab.document(), policy=strict)
    assert rejected(verify, lab, lab.document(clock_offset=-0.001), policy=strict) == "freshness.stale"
    assert rejected(verify, lab, lab.document(clock_offset=0.001), policy=strict) == "freshness.future"


def test_values_of_two_allowed_sets_do_not_mix(lab: Any) -> None:
    """Mistake: each PCR is looked up in a separate list, or only PCR0 is compared."""
    ours = dict(lab.enclave.measurements)
    theirs = {index: bytes((index + 1,)) * 48 for index in ours}
    policy = lab.policy(pcr_sets=(PcrSet(theirs), PcrSet(ours)))
    verify(lab, lab.document(), policy=policy)
    for index in (0, 1, 2):
        assert rejected(verify, lab, lab.document(pcrs={index: theirs[index]}), policy=policy) == "pcr.set"
    verify(lab, lab.document(pcrs=theirs), policy=policy)


def test_debug_mode_needs_the_flag_and_a_set_of_its_own(lab: Any) -> None:
    """Mistake: debug mode requires all PCRs to be zero. PCR4 never is."""
    document = lab.document(debug=True)
    assert rejected(verify, lab, document) == "pcr.debug"
    assert rejected(verify, lab, document, policy=lab.policy(allow_debug=True)) == "pcr.set"
    zero = PcrSet(dict.fromkeys((0, 1, 2), bytes(48)))
    assert rejected(verify, lab, document, policy=lab.policy(pcr_sets=(zero,))) == "pcr.debug"
    verify(lab, document, policy=lab.policy(pcr_sets=(zero,), allow_debug=True))


def test_the_nonce_that_was_asked_for(lab: Any, good: bytes) -> None:
    assert rejected(verify, lab, good, nonce=bytes(32)) == "nonce.mismatch"
    assert rejected(verify, lab, good, nonce=lab.nonce[:-1]) == "nonce.mismatch"
    assert rejected(verify, lab, good, nonce=b"") == "nonce.mismatch"
    assert rejected(verify, lab, lab.document(payload={"nonce": b""}), nonce=b"") == "nonce.short"


def test_a_second_valid_encoding_exists_so_that_no_hash_may_stand_for_a_document(lab: Any, good: bytes) -> None:
    """ECDSA is malleable: with s, n - s verifies too. Only the nonce prevents replays."""
    s = int.from_bytes(good[-48:], "big")
    twin = good[:-48] + (P384_ORDER - s).to_bytes(48, "big")
    assert twin != good
    assert verify(lab, twin) == verify(lab, good)


def test_a_stored_document_is_no_answer_to_a_new_nonce(lab: Any, good: bytes) -> None:
    assert rejected(verify, lab, good, nonce=bytes(31) + b"\x01") == "nonce.mismatch"


def test_signature_of_another_enclaves_genuine_leaf(lab: Any, good: bytes) -> None:
    """A genuine certificate and a genuine signature, but not by this certificate's key."""
    other = lab.document(module_id="i-0fedcba9876543210-enc0123456789abcdef")
    envelope, borrowed = cbor2.loads(good), cbor2.loads(other)
    spliced = cbor2.dumps([envelope[0], {}, envelope[2], borrowed[3]])
    assert rejected(verify, lab, spliced) == "cose.sig"


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96, bytes(47) + b"\x01" + bytes(48)])
def test_signatures_out_of_range(lab: Any, good: bytes, signature: bytes) -> None:
    assert rejected(verify, lab, good[:-96] + signature) == "cose.sig"


def test_a_naive_clock_is_a_bug_of_the_caller(lab: Any, good: bytes) -> None:
    with pytest.raises(TypeError):
        Verifier(lab.policy()).verify(good, nonce=lab.nonce, now=datetime(2026, 11, 23))  # noqa: DTZ001


# Never a crash, never a pass.


def test_every_truncation_is_rejected(lab: Any, good: bytes) -> None:
    for length in range(len(good)):
        assert rejected(verify, lab, good[:length]) in {"size", "cbor"}


@pytest.mark.slow
def test_ten_thousand_mutations_are_rejected(lab: Any, good: bytes) -> None:
    chance = random.Random(20261123)
    by_check: dict[str, int] = {}
    for _ in range(10_000):
        mutated = mutate(good, chance)
        check = rejected(verify, lab, mutated)
        by_check[check] = by_check.get(check, 0) + 1
    # The mutations reach every layer: encoding, envelope, payload, chain and signature.
    layers = {check.partition(".")[0] for check in by_check}
    assert {"cbor", "cose", "payload", "chain"} <= layers, by_check
    assert "cose.sig" in by_check


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Another byte string: a few bits or bytes changed, or a piece of it moved."""
    mutated = bytearray(data)
    while mutated == data:
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(mutated))
            match chance.randrange(5):
                case 0:
                    mutated[at] ^= 1 << chance.randrange(8)
                case 1:
                    mutated[at] = chance.randrange(256)
                case 2:
                    del mutated[at : at + chance.randint(1, 4)]
                case 3:
                    mutated[at:at] = chance.randbytes(chance.randint(1, 4))
                case _:
                    source = chance.randrange(len(mutated))
                    piece = mutated[source : source + chance.randint(1, 64)]
                    mutated[at : at + len(piece)] = piece
    return bytes(mutated)


@pytest.mark.slow
def test_garbage_is_rejected(lab: Any) -> None:
    chance = random.Random(1)
    for size in range(1, 2000, 7):
        assert rejected(verify, lab, chance.randbytes(size))


@pytest.mark.slow
def test_garbage_inside_a_well_formed_document_is_rejected(lab: Any, good: bytes) -> None:
    """The encoding is valid, the meaning is not: every field in turn holds random bytes, unsigned and signed."""
    chance = random.Random(2)
    protected, unprotected, payload, signature = cbor2.loads(good)
    fields = cbor2.loads(payload)
    for name in fields:
        changed = cbor2.dumps(fields | {name: chance.randbytes(64)})
        assert rejected(verify, lab, cbor2.dumps([protected, unprotected, changed, signature]))
    for name in ("certificate", "nonce"):
        assert rejected(verify, lab, lab.document(payload={name: chance.randbytes(64)})) in {
            "chain.parse",
            "nonce.mismatch",
        }


# A second opinion, and real documents.


def pycose_accepts(document: bytes) -> bool:
    """Return whether pycose, with python-ecdsa beneath, accepts the signature."""
    envelope = cbor2.loads(document)
    message = Sign1Message.from_cose_obj(list(envelope), True)
    leaf = x509.load_der_x509_certificate(cbor2.loads(message.payload)["certificate"])
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    numbers = key.public_numbers()
    message.key = EC2Key(crv=P384, x=numbers.x.to_bytes(48, "big"), y=numbers.y.to_bytes(48, "big"))
    return bool(message.verify_signature())


def test_pycose_agrees_on_the_signature(lab: Any, good: bytes) -> None:
    assert pycose_accepts(good)
    wrong = lab.document(corrupt_signature=True)
    assert not pycose_accepts(wrong)
    assert rejected(verify, lab, wrong) == "cose.sig"


def test_real_documents(attestation_sample: Any) -> None:
    data, expected = attestation_sample.data, attestation_sample.expected
    outcomes = []
    for now in (attestation_sample.at, datetime.now(UTC)):
        try:
            document = verifier.authenticate(data, accepted_roots=(AWS_NITRO_ROOT_G1,), now=now)
            verifier.check_image_pcrs(document.pcrs, allow_debug=False)
            outcomes.append("ok")
        except RejectedDocumentError as error:
            outcomes.append(error.check)
    assert outcomes == [expected["expect_at_own_time"], expected["expect_today"]]


def test_real_documents_against_the_second_opinion(attestation_sample: Any) -> None:
    expected = attestation_sample.expected["expect_at_own_time"]
    assert pycose_accepts(attestation_sample.data) == (expected != "cose.sig")


def test_real_documents_through_the_whole_policy(enclave_sample: Any) -> None:
    """With its own measurements allowed and its own nonce expected, at its own time."""
    document, expected = parse_document(enclave_sample.data), enclave_sample.expected
    outcome = expected["expect_at_own_time"]
    if outcome in {"ok", "pcr.debug"} and len(document.nonce or b"") < MIN_NONCE_SIZE:
        outcome = "nonce.missing" if document.nonce is None else "nonce.short"
    allowed = PcrSet({index: document.pcrs[index] for index in (0, 1, 2, 3, 4, 8)})
    genuine = Verifier(Policy(pcr_sets=(allowed,)))
    reached = "ok"
    try:
        genuine.verify(enclave_sample.data, nonce=document.nonce or b"", now=enclave_sample.at)
    except RejectedDocumentError as error:
        reached = error.check
    assert reached == outcome
