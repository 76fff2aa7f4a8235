"""Whatever the bytes, the verifier raises RejectedDocumentError, nothing else, and accepts the good document alone.

Beneath it, the strict CBOR reader raises CborError, nothing else, or returns a value whose one encoding is the input.

    python fuzz/fuzz_attestation.py -max_total_time=60
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import atheris
import cbor2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.attestation", "cbor2"]):
    from lab.nsm.pki import LabAuthority
    from lab.nsm.signer import FakeNsm, LabEnclave
    from wgvsock.attestation.cbor import strict_loads
    from wgvsock.attestation.errors import CborError, RejectedDocumentError
    from wgvsock.attestation.policy import PcrSet, Policy
    from wgvsock.attestation.verifier import Verifier
    from wgvsock.devices.nsm import NsmClient

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NONCE = bytes(range(32))
AUTHORITY = LabAuthority(lambda: NOW)
ENCLAVE = LabEnclave()
GOOD = NsmClient(FakeNsm(AUTHORITY, ENCLAVE, clock=lambda: NOW)).attest(nonce=NONCE, user_data=b"u", public_key=b"k")
PROTECTED, _, PAYLOAD, SIGNATURE = cbor2.loads(GOOD)
VERIFIER = Verifier(Policy(pcr_sets=(PcrSet(ENCLAVE.measurements),), accepted_roots=(AUTHORITY.root_fingerprint,)))
VERIFIER.verify(GOOD, nonce=NONCE, now=NOW)


def reject(document: bytes) -> None:
    """The document must not pass, and only a rejection may come out."""
    if document == GOOD:
        return
    try:
        VERIFIER.verify(document, nonce=NONCE, now=NOW)
    except RejectedDocumentError:
        return
    raise AssertionError(f"accepted: {document.hex()}")


def edited(edits: bytes) -> bytes:
    """The good document with its bytes changed as `edits` say, three bytes an edit: position (16 bits), new value."""
    document = bytearray(GOOD)
    for start in range(0, len(edits) - 2, 3):
        position = int.from_bytes(edits[start : start + 2], "big") % len(document)
        document[position] = edits[start + 2]
    return bytes(document)


def test_one_input(data: bytes) -> None:
    """One input takes each of the ways in: as CBOR, as a document, as a payload, as a certificate, as changes."""
    try:
        value = strict_loads(data)
    except CborError:
        pass
    else:
        assert cbor2.dumps(value) == data
    reject(data)
    reject(cbor2.dumps([PROTECTED, {}, data, SIGNATURE]))
    fields = cbor2.loads(PAYLOAD)
    for field in ("certificate", "user_data"):
        reject(cbor2.dumps([PROTECTED, {}, cbor2.dumps(fields | {field: data}), SIGNATURE]))
    reject(edited(data))


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
