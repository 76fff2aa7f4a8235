"""For any input, the verifier raises only RejectedDocumentError, and accepts only the good document.

Below it, the strict CBOR reader raises only CborError, or returns a value whose single encoding is the input. If the
outermost map may be open, ``bf … ff``, a map has exactly two. A module's response is either read or an NsmError.

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
    from wgvsock.devices.nsm import NsmClient, NsmError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NONCE = bytes(range(32))
AUTHORITY = LabAuthority(lambda: NOW)
ENCLAVE = LabEnclave()
GOOD = NsmClient(FakeNsm(AUTHORITY, ENCLAVE, clock=lambda: NOW)).attest(nonce=NONCE, user_data=b"u", public_key=b"k")
PROTECTED, _, PAYLOAD, SIGNATURE = cbor2.loads(GOOD)
VERIFIER = Verifier(Policy(pcr_sets=(PcrSet(ENCLAVE.measurements),), accepted_roots=(AUTHORITY.root_fingerprint,)))
VERIFIER.verify(GOOD, nonce=NONCE, now=NOW)


def check_reader(data: bytes) -> None:
    """Check that an accepted value has one encoding, or two if its outermost map may be open."""
    for may_be_open in (False, True):
        try:
            value = strict_loads(data, may_be_open=may_be_open)
        except CborError:
            continue
        encodings = {cbor2.dumps(value)}
        if may_be_open and isinstance(value, dict):
            entries = b"".join(cbor2.dumps(part) for entry in value.items() for part in entry)
            encodings.add(b"\xbf" + entries + b"\xff")
        assert data in encodings, data.hex()


class Module:
    """A secure module with one answer."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def request(self, _request: bytes) -> bytes:
        """Return the answer to any request."""
        return self.answer


def check_response(data: bytes) -> None:
    """Check that both forms of the outermost map give only bytes or an NsmError."""
    for answer in (data, b"\xa1" + data, b"\xbf" + data, b"\xbf" + data + b"\xff"):
        try:
            assert isinstance(NsmClient(Module(answer)).random(), bytes)
        except NsmError:
            continue


def reject(document: bytes) -> None:
    """Check that the document is refused, and that nothing else is raised."""
    if document == GOOD:
        return
    try:
        VERIFIER.verify(document, nonce=NONCE, now=NOW)
    except RejectedDocumentError:
        return
    raise AssertionError(f"accepted: {document.hex()}")


def edited(edits: bytes) -> bytes:
    """Return the good document with some bytes changed. An edit has three bytes: position (16 bits), new value."""
    document = bytearray(GOOD)
    for start in range(0, len(edits) - 2, 3):
        position = int.from_bytes(edits[start : start + 2], "big") % len(document)
        document[position] = edits[start + 2]
    return bytes(document)


def test_one_input(data: bytes) -> None:
    """Use one input in every role: as CBOR, as a document, as a payload, as a certificate, as changes."""
    check_reader(data)
    check_reader(b"\xbf" + data + b"\xff")
    check_response(data)
    reject(data)
    # As a payload, and as additional entries of the open payload.
    for payload in (data, b"\xbf" + data, b"\xbf" + data + b"\xff", PAYLOAD[:-1] + data + b"\xff"):
        reject(cbor2.dumps([PROTECTED, {}, payload, SIGNATURE]))
    fields = cbor2.loads(PAYLOAD)
    for field in ("certificate", "user_data"):
        reject(cbor2.dumps([PROTECTED, {}, cbor2.dumps(fields | {field: data}), SIGNATURE]))
    reject(edited(data))


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
