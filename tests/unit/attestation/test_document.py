from __future__ import annotations

import dataclasses
import re
from typing import Any

import cbor2
import pytest

from wgvsock.attestation import errors
from wgvsock.attestation.document import MAX_DOCUMENT_SIZE, parse_document

PROTECTED = bytes.fromhex("a1013822")
SIGNATURE = bytes(96)
PAYLOAD: dict[Any, Any] = {
    "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
    "digest": "SHA384",
    "timestamp": 1_700_000_000_123,
    "pcrs": {0: bytes(48), 31: b"\x01" * 48},
    "certificate": b"leaf",
    "cabundle": [b"root", b"intermediate"],
    "public_key": b"key",
    "user_data": b"",
    "nonce": b"nonce",
}
OPEN = b"\xbf" + cbor2.dumps(PAYLOAD)[1:] + b"\xff"  # as AWS writes it since 2025; closed it begins with a9


def document(payload: object = PAYLOAD, *, protected: object = PROTECTED, signature: object = SIGNATURE) -> bytes:
    encoded = payload if isinstance(payload, bytes) else cbor2.dumps(payload)
    return cbor2.dumps([protected, {}, encoded, signature])


def changed(**fields: Any) -> bytes:
    return document(PAYLOAD | fields)


def without(field: str) -> bytes:
    return document({name: value for name, value in PAYLOAD.items() if name != field})


def rejected(data: bytes) -> str:
    with pytest.raises(errors.RejectedDocumentError) as caught:
        parse_document(data)
    return caught.value.check


def test_fields_and_received_bytes() -> None:
    parsed = parse_document(document())
    assert parsed.module_id == PAYLOAD["module_id"]
    assert parsed.timestamp_ms == PAYLOAD["timestamp"]
    assert parsed.pcrs == PAYLOAD["pcrs"]
    assert parsed.certificate == b"leaf"
    assert parsed.cabundle == (b"root", b"intermediate")
    assert (parsed.public_key, parsed.user_data, parsed.nonce) == (b"key", b"", b"nonce")
    assert parsed.signature == SIGNATURE
    assert cbor2.loads(parsed.signed_bytes()) == ["Signature1", PROTECTED, b"", cbor2.dumps(PAYLOAD)]


def test_the_signature_covers_the_payload_as_received_whatever_its_key_order() -> None:
    reordered = cbor2.dumps(dict(reversed(PAYLOAD.items())))
    parsed = parse_document(document(reordered))
    assert parsed.payload == reordered
    assert cbor2.loads(parsed.signed_bytes())[3] == reordered


def test_the_payloads_map_may_be_open_and_is_hashed_as_received() -> None:
    parsed = parse_document(document(OPEN))
    assert parsed.payload == OPEN
    assert cbor2.loads(parsed.signed_bytes())[3] == OPEN
    closed = parse_document(document())
    assert dataclasses.replace(parsed, payload=closed.payload) == closed


@pytest.mark.parametrize("form", [OPEN, cbor2.dumps(PAYLOAD)], ids=["open", "closed"])
def test_an_instances_document_is_named(form: bytes) -> None:
    assert rejected(document(form.replace(b"\x64pcrs", b"\x6dnitrotpm_pcrs"))) == "payload.nitrotpm"
    assert rejected(changed(nitrotpm_pcrs={0: bytes(48)})) == "payload.nitrotpm"  # and no PCRs beside it help


def test_tag_18_may_stand_in_front_and_no_other() -> None:
    assert parse_document(b"\xd2" + document()) == parse_document(document())
    assert rejected(b"\xd3" + document()) == "cbor"
    assert rejected(b"\xd2\xd2" + document()) == "cbor"
    assert rejected(b"\xd8\x12" + document()) == "cbor"  # the same tag in two bytes


@pytest.mark.parametrize("field", ["public_key", "user_data", "nonce"])
def test_optional_fields_may_be_null_or_absent(field: str) -> None:
    assert getattr(parse_document(changed(**{field: None})), field) is None
    assert getattr(parse_document(without(field)), field) is None


def test_unknown_fields_are_left_to_the_signature() -> None:
    assert parse_document(changed(new_in_2030=b"x")).module_id == PAYLOAD["module_id"]


def test_size() -> None:
    assert rejected(b"") == "size"
    assert rejected(bytes(MAX_DOCUMENT_SIZE + 1)) == "size"
    padding = MAX_DOCUMENT_SIZE - len(document(PAYLOAD | {"padding": bytes(1000)})) + 1000
    largest = changed(padding=bytes(padding))
    assert len(largest) == MAX_DOCUMENT_SIZE
    parse_document(largest)
    assert rejected(changed(padding=bytes(padding + 1))) == "size"


@pytest.mark.parametrize(
    ("data", "check"),
    [
        (b"\xff", "cbor"),
        (document() + b"\x00", "cbor"),
        (document()[:-1], "cbor"),
        (document(b"\xa2\x61a\x01\x61a\x02"), "cbor"),
        (document(cbor2.dumps(PAYLOAD) + b"\x00"), "cbor"),
        (document(OPEN[:-1]), "cbor"),  # no break
        (document(OPEN + b"\xff"), "cbor"),
        (document(OPEN + b"\x00"), "cbor"),
        (document(OPEN[:-1] + b"\x61x\xff"), "cbor"),  # a key without a value
        (document(OPEN[:-1] + b"\x65nonce\x40\xff"), "cbor"),  # twice
        (document(OPEN[:-1] + b"\x61x\xbf\xff\xff"), "cbor"),  # another open map inside
        (document(OPEN[:-1] + b"\x61x\x9f\xff\xff"), "cbor"),
        (document(OPEN[:-1] + b"\x61x\x5f\xff\xff"), "cbor"),
        (document(OPEN.replace(b"\x64pcrs\xa2", b"\x64pcrs\xbf").replace(b"\x6bcert", b"\xff\x6bcert")), "cbor"),
        (document(b"\xbf\xff"), "payload.digest"),
        (document(b"\x9f\xff"), "cbor"),
        (b"\x9f" + document()[1:] + b"\xff", "cbor"),  # the envelope is never open
        (document().replace(PROTECTED + b"\xa0", PROTECTED + b"\xbf\xff"), "cbor"),
        (document(b""), "cbor"),
        (cbor2.dumps(PROTECTED), "cose.structure"),
        (cbor2.dumps([PROTECTED, {}, cbor2.dumps(PAYLOAD)]), "cose.structure"),
        (cbor2.dumps([PROTECTED, {}, cbor2.dumps(PAYLOAD), SIGNATURE, b""]), "cose.structure"),
        (cbor2.dumps([PROTECTED, [], cbor2.dumps(PAYLOAD), SIGNATURE]), "cose.structure"),
        (cbor2.dumps([PROTECTED, {}, None, SIGNATURE]), "cose.structure"),
        (cbor2.dumps([PROTECTED, {}, "text", SIGNATURE]), "cose.structure"),
        (document(protected={1: -35}), "cose.structure"),
        (document(signature="text"), "cose.structure"),
        (document(signature=bytes(95)), "cose.structure"),
        (document(signature=bytes(97)), "cose.structure"),
        (document(protected=b""), "cose.protected"),
        (document(protected=b"\xa0"), "cose.protected"),
        (document(protected=bytes.fromhex("a10126")), "cose.protected"),  # ES256
        (document(protected=bytes.fromhex("a201382204 4101")), "cose.protected"),  # and a key identifier
        (document(protected=bytes.fromhex("a101390022")), "cose.protected"),  # ES384, not in its shortest form
        (cbor2.dumps([PROTECTED, {1: -35}, cbor2.dumps(PAYLOAD), SIGNATURE]), "cose.unprotected"),
        (document([PAYLOAD]), "payload.structure"),
        (document(b"\xf6"), "payload.structure"),
    ],
)
def test_envelope(data: bytes, check: str) -> None:
    assert rejected(data) == check


@pytest.mark.parametrize("field", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
def test_mandatory_fields(field: str) -> None:
    assert rejected(without(field)) == f"payload.{field}"
    assert rejected(changed(**{field: None})) == f"payload.{field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("module_id", b"i-0123456789abcdef0-enc0123456789abcdef"),
        ("module_id", ""),
        ("module_id", "x" * 129),
        ("module_id", "i-0 1"),
        ("module_id", "i-0\n1"),
        ("module_id", "i-\u202e0"),
        ("module_id", "\x1b[31m"),
        ("digest", "SHA256"),
        ("digest", "sha384"),
        ("digest", b"SHA384"),
        ("timestamp", 0),
        ("timestamp", -1),
        ("timestamp", 1 << 53),
        ("timestamp", True),
        ("timestamp", "1700000000123"),
        ("pcrs", {}),
        ("pcrs", []),
        ("pcrs", {-1: bytes(48)}),
        ("pcrs", {32: bytes(48)}),
        ("pcrs", {"0": bytes(48)}),
        ("pcrs", {0: bytes(47)}),
        ("pcrs", {0: bytes(49)}),
        ("pcrs", {0: "0" * 48}),
        ("pcrs", {0: None}),
        ("pcrs", {index: bytes(48) for index in range(33)}),
        ("certificate", b""),
        ("certificate", bytes(1025)),
        ("certificate", "leaf"),
        ("cabundle", []),
        ("cabundle", {0: b"root"}),
        ("cabundle", [b"x"] * 6),
        ("cabundle", [b""]),
        ("cabundle", [bytes(1025)]),
        ("cabundle", ["root"]),
        ("cabundle", b"root"),
        ("public_key", bytes(1025)),
        ("public_key", "key"),
        ("user_data", bytes(1025)),
        ("user_data", 1),
        ("nonce", bytes(1025)),
        ("nonce", False),
    ],
)
def test_exact_types_and_ranges(field: str, value: object) -> None:
    assert rejected(changed(**{field: value})) == f"payload.{field}"


def test_a_boolean_is_no_pcr_index() -> None:
    # cbor2 would hand out {True: …}, which Python finds under 1.
    assert rejected(changed(pcrs={True: bytes(48)})) == "cbor"


@pytest.mark.parametrize("field", ["public_key", "user_data", "nonce"])
@pytest.mark.parametrize("size", [0, 1, 1024])
def test_an_optional_field_has_up_to_1024_bytes(field: str, size: int) -> None:
    assert getattr(parse_document(changed(**{field: bytes(size)})), field) == bytes(size)


def test_all_32_pcrs() -> None:
    assert len(parse_document(changed(pcrs={index: bytes(48) for index in range(32)})).pcrs) == 32


def test_pcrs_cannot_be_changed_afterwards() -> None:
    with pytest.raises(TypeError):
        parse_document(document()).pcrs[0] = bytes(48)  # type: ignore[index]


def test_real_documents_begin_as_expected(attestation_sample: Any) -> None:
    data, expected = attestation_sample.data, attestation_sample.expected
    assert data.startswith(bytes.fromhex("8444a1013822a059"))
    if expected["expect_today"] == "payload.nitrotpm":
        assert rejected(data) == "payload.nitrotpm"
        return
    parsed = parse_document(data)
    assert (parsed.module_id, parsed.timestamp_ms) == (expected["module_id"], expected["timestamp_ms"])
    assert len(parsed.pcrs) == expected["pcr_count"]
    nonzero = {str(index): value.hex() for index, value in parsed.pcrs.items() if any(value)}
    assert nonzero == expected["pcrs"]
    for field in ("nonce", "user_data", "public_key"):
        value = getattr(parsed, field)
        assert (value if value is None else value.hex()) == expected[field]
    assert re.fullmatch(r"i-[0-9a-f]{17}-enc[0-9a-f]{16}", parsed.module_id)
