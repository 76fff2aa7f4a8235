from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, new_module_id, utc_now

NOW = datetime(2026, 11, 23, 12, 0, 0, 123_000, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> LabAuthority:
    return LabAuthority(lambda: NOW)


@pytest.fixture
def enclave() -> LabEnclave:
    return LabEnclave()


@pytest.fixture
def module(authority: LabAuthority, enclave: LabEnclave) -> FakeNsm:
    return FakeNsm(authority, enclave, clock=lambda: NOW)


def ask(module: FakeNsm, request: object) -> Any:
    return cbor2.loads(module.request(request if isinstance(request, bytes) else cbor2.dumps(request)))


def document(module: FakeNsm, **fields: bytes) -> bytes:
    answer = ask(module, {"Attestation": {"user_data": None, "nonce": None, "public_key": None} | fields})
    signed = answer["Attestation"]["document"]
    assert isinstance(signed, bytes)
    return signed


def test_documents_have_awss_bytes(module: FakeNsm) -> None:
    signed = document(module, nonce=b"n")
    assert signed.startswith(bytes.fromhex("8444a1013822a059"))
    assert 3900 < len(signed) < 5200
    protected, unprotected, payload, signature = cbor2.loads(signed)
    assert (protected, unprotected, len(signature)) == (bytes.fromhex("a1013822"), {}, 96)
    assert list(cbor2.loads(payload)) == [
        "module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce",
    ]  # fmt: skip


def test_the_payloads_map_is_open_unless_the_knob_closes_it(module: FakeNsm, enclave: LabEnclave) -> None:
    payload = cbor2.loads(document(module))[2]
    assert (payload[:1], payload[-1:]) == (b"\xbf", b"\xff")
    enclave.faults = Faults(closed_map=True)
    closed = cbor2.loads(document(module))[2]
    assert closed[:1] == b"\xa9"
    assert payload[1:-1] == closed[1:]
    assert cbor2.loads(payload) == cbor2.loads(closed)


def test_the_payload_says_what_was_asked_and_measured(module: FakeNsm, enclave: LabEnclave) -> None:
    payload = cbor2.loads(cbor2.loads(document(module, nonce=b"n", user_data=b"", public_key=b"k"))[2])
    assert payload["module_id"] == enclave.module_id
    assert payload["timestamp"] == int(NOW.timestamp() * 1000)
    assert payload["digest"] == "SHA384"
    assert (payload["nonce"], payload["user_data"], payload["public_key"]) == (b"n", b"", b"k")
    assert list(payload["pcrs"]) == list(range(16))
    assert payload["pcrs"][0] == enclave.measurements[0]


def test_cryptography_accepts_the_signature(module: FakeNsm) -> None:
    protected, _, payload, signature = cbor2.loads(document(module))
    leaf = x509.load_der_x509_certificate(cbor2.loads(payload)["certificate"])
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(half, "big") for half in (signature[:48], signature[48:]))
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))


def test_a_pcr_that_the_enclave_locked_is_in_the_document(module: FakeNsm) -> None:
    ask(module, {"ExtendPCR": {"index": 16, "data": b"key"}})
    assert 16 not in cbor2.loads(cbor2.loads(document(module))[2])["pcrs"]
    assert ask(module, {"LockPCR": {"index": 16}}) == "LockPCR"
    assert 16 in cbor2.loads(cbor2.loads(document(module))[2])["pcrs"]


def test_each_boot_has_fresh_pcrs(authority: LabAuthority, enclave: LabEnclave) -> None:
    first = FakeNsm(authority, enclave)
    ask(first, {"LockPCR": {"index": 16}})
    assert ask(first, {"DescribePCR": {"index": 16}})["DescribePCR"]["lock"]
    assert not ask(FakeNsm(authority, enclave), {"DescribePCR": {"index": 16}})["DescribePCR"]["lock"]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"", "InvalidOperation"),
        (b"\xff", "InvalidOperation"),
        (cbor2.dumps("Reboot"), "InvalidOperation"),
        (cbor2.dumps("Attestation"), "InvalidOperation"),
        (cbor2.dumps(["DescribeNSM"]), "InvalidOperation"),
        (cbor2.dumps({}), "InvalidOperation"),
        (cbor2.dumps({"LockPCR": {"index": 16}, "LockPCRs": {"range": 17}}), "InvalidOperation"),
        (cbor2.dumps({"LockPCR": 16}), "InvalidOperation"),
        (cbor2.dumps({"LockPCR": {"index": "16"}}), "InvalidOperation"),
        (cbor2.dumps({"ExtendPCR": {"index": 16}}), "InvalidOperation"),
        (cbor2.dumps({"ExtendPCR": {"index": 3, "data": b""}}), "ReadOnlyIndex"),
        (cbor2.dumps({"DescribePCR": {"index": 32}}), "InvalidIndex"),
        (cbor2.dumps({"LockPCRs": {"range": 33}}), "InvalidIndex"),
        (cbor2.dumps({"Attestation": {"nonce": "text"}}), "InvalidArgument"),
        (cbor2.dumps({"Attestation": {"nonce": bytes(1025)}}), "InputTooLarge"),
        (bytes(0x1001), "InputTooLarge"),
    ],
)
def test_errors(module: FakeNsm, request_: bytes, error: str) -> None:
    assert ask(module, request_) == {"Error": error}


def test_describe_and_random(module: FakeNsm, enclave: LabEnclave) -> None:
    description = ask(module, "DescribeNSM")["DescribeNSM"]
    assert description["module_id"] == enclave.module_id
    assert (description["max_pcrs"], description["digest"]) == (32, "SHA384")
    assert len(ask(module, "GetRandom")["GetRandom"]["random"]) == 256


def test_a_slow_module(authority: LabAuthority) -> None:
    slept: list[float] = []
    enclave = LabEnclave(faults=Faults(delay=7.5))
    ask(FakeNsm(authority, enclave, sleep=slept.append), "DescribeNSM")
    assert slept == [7.5]


def test_knobs_turn_while_the_enclave_runs(module: FakeNsm, enclave: LabEnclave) -> None:
    enclave.faults = Faults(error="InternalError")
    assert ask(module, {"Attestation": {}}) == {"Error": "InternalError"}
    enclave.faults = Faults(der_signature=True)
    decode_dss_signature(cbor2.loads(document(module))[3])
    enclave.faults = Faults(tagged=True)
    assert document(module)[0] == 0xD2
    enclave.faults = Faults(protected=b"\xa0")
    assert cbor2.loads(document(module))[0] == b"\xa0"
    for closed_map in (False, True):
        enclave.faults = Faults(duplicate_key=True, closed_map=closed_map)
        payload = cbor2.loads(document(module))[2]
        assert set(cbor2.loads(payload)) >= {"module_id", "nonce"}
        with pytest.raises(cbor2.CBORDecodeError):
            cbor2.loads(payload, allow_duplicate_keys=False)
    enclave.faults = Faults()
    assert len(cbor2.loads(document(module))) == 4


def test_identities_are_of_awss_form_and_never_the_same() -> None:
    assert re.fullmatch(r"i-[0-9a-f]{17}-enc[0-9a-f]{16}", new_module_id())
    assert new_module_id() != new_module_id()
    assert LabEnclave().module_id != LabEnclave().module_id


def test_the_default_clock_knows_its_zone() -> None:
    assert utc_now().tzinfo is UTC
