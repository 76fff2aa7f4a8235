"""Stored documents, against the verifier and against a second implementation that shares no code."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

import pytest

from tests.vectors import reference_document as reference
from tests.vectors.generate_documents import DOCUMENTS, FILE, documents
from wgvsock.attestation.document import parse_document
from wgvsock.attestation.errors import RejectedDocumentError
from wgvsock.attestation.measurements import parse_measurements
from wgvsock.attestation.policy import Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import Verifier

VECTORS = json.loads(FILE.read_text())
SIGNED = {name: bytes.fromhex(document) for name, document in VECTORS["documents"].items()}
OUTCOMES = {"open": "ok", "closed": "ok", "open-debug": "pcr.debug", "open-empty-public-key": "public_key"}
ROOT = bytes.fromhex(VECTORS["root_sha256"])


def outcome(document: bytes) -> str:
    measured = PcrSet(parse_measurements(VECTORS["pcrs"]))
    verifier = Verifier(Policy(pcr_sets=(measured,), accepted_roots=(ROOT,)))
    try:
        enclave = verifier.verify_enclave(
            document,
            nonce=bytes.fromhex(VECTORS["nonce"]),
            now=datetime.fromisoformat(VECTORS["at"]),
            expectations=Expectations(user_data=bytes.fromhex(VECTORS["user_data"]), enclave_id=VECTORS["module_id"]),
        )
    except RejectedDocumentError as error:
        return error.check
    assert enclave.wireguard_public_key.hex() == VECTORS["wireguard_public_key"]
    return "ok"


def test_the_verifier_says_what_is_expected_of_each() -> None:
    assert {name: outcome(document) for name, document in SIGNED.items()} == OUTCOMES


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_payloads_map_has_the_form_of_its_name(name: str) -> None:
    payload = parse_document(SIGNED[name]).payload
    assert payload[:1] == (b"\xbf" if name.startswith("open") else b"\xa9")


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_second_implementation_reads_and_accepts_the_same(name: str) -> None:
    document = parse_document(SIGNED[name])
    fields = reference.read_document(SIGNED[name])
    assert fields == {
        "digest": "SHA384",
        "timestamp": document.timestamp_ms,
        "cabundle": list(document.cabundle),
        **{
            field: getattr(document, field)
            for field in ("module_id", "pcrs", "certificate", "public_key", "user_data", "nonce")
        },
    }
    assert hashlib.sha256(fields["cabundle"][0]).digest() == ROOT
    assert reference.signatures_are_right(SIGNED[name])
    broken = bytearray(SIGNED[name])
    broken[-1] ^= 1
    assert not reference.signatures_are_right(bytes(broken))


def test_the_second_implementations_curve_is_p384() -> None:
    x, y = reference.G
    assert (y**2 - x**3 + 3 * x - reference.B) % reference.P == 0
    assert reference.multiply(reference.N, reference.G) is None


def test_a_new_run_of_the_generator_differs_in_keys_and_signatures_alone() -> None:
    made = documents()
    assert set(made) == set(VECTORS)
    for name in set(VECTORS) - {"root_sha256", "documents"}:
        assert made[name] == VECTORS[name], f"run python -m tests.vectors.generate_documents for {name}"
    signed = made["documents"]
    assert isinstance(signed, dict)
    for name, document in signed.items():
        ours, theirs = (reference.read_document(data) for data in (bytes.fromhex(document), SIGNED[name]))
        random = {"certificate": b"", "cabundle": []}
        assert ours | random == theirs | random
