from __future__ import annotations

import base64
import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wgvsock.cli.document_text import MAX_INPUT, decode_text, find_document
from wgvsock.errors import ConfigurationError

# 4,500 bytes whose base64 holds + and /; what they say does not matter here.
DOCUMENT = bytes.fromhex("8444a1013822a059") + b"\xfb\xff" + random.Random(1).randbytes(4490)
BASE64 = base64.b64encode(DOCUMENT).decode()
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIICETCCAZagAwIBAgIRAPkxdWgbkK/hHUbMtOTn+FYw\n-----END CERTIFICATE-----\n"


def found(data: bytes | str, document: bytes = DOCUMENT) -> str:
    """The form in which the document was found."""
    result = find_document(data.encode() if isinstance(data, str) else data, "FILE")
    assert result.data == document
    return result.form


def wrapped(text: str, width: int, end: str) -> str:
    return end.join(text[start : start + width] for start in range(0, len(text), width)) + end


def refused(data: bytes | str) -> str:
    with pytest.raises(ConfigurationError, match="no attestation document in FILE") as caught:
        find_document(data.encode() if isinstance(data, str) else data, "FILE")
    assert caught.value.exit_code == 2
    assert caught.value.why.isprintable()
    assert caught.value.fix
    return caught.value.why


@pytest.mark.parametrize("document", [DOCUMENT, b"\xd2" + DOCUMENT], ids=["untagged", "tagged"])
def test_bytes(document: bytes) -> None:
    assert found(document, document) == "raw CBOR"
    assert found(base64.b64encode(document), document) == "base64"
    assert found(document.hex(), document) == "hexadecimal"


@pytest.mark.parametrize("data", [b"\x00", bytes(MAX_INPUT + 1), b"\x89PNG\r\n\x1a\n", DOCUMENT[1:], b"\xa0"])
def test_other_bytes_are_left_to_the_verifier(data: bytes) -> None:
    assert found(data, data) == "bytes of no known form"


@given(st.binary(max_size=300), st.sampled_from([0, 1, 2, 3, 60, 64, 76]), st.sampled_from(["\n", "\r\n", " ", r"\n"]))
@example(b"", 0, "\n")
def test_base64_however_it_is_written(rest: bytes, width: int, end: str) -> None:
    document = DOCUMENT[:10] + rest
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(document).decode()
        for variant in (text, text.rstrip("=")):
            assert found(wrapped(variant, width, end) if width else variant, document).endswith("base64")


def test_base64_of_both_alphabets_is_told_apart() -> None:
    assert found(BASE64) == "base64"
    assert found(base64.urlsafe_b64encode(DOCUMENT).decode()) == "URL-safe base64"


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("prefix", ["", "0x", "0X"])
@pytest.mark.parametrize("width", [2, 60, 9000])
@pytest.mark.parametrize("end", ["\n", " ", "\r\n", ":", ":\n"])
def test_hexadecimal_however_it_is_written(upper: bool, prefix: str, width: int, end: str) -> None:
    digits = wrapped(DOCUMENT.hex(), width, end)
    assert found(prefix + (digits.upper() if upper else digits)) == "hexadecimal"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (BASE64, "base64 in JSON"),
        ({"attestation_document": DOCUMENT.hex()}, "hexadecimal in JSON, 'attestation_document'"),
        ({"document": wrapped(BASE64, 76, "\r\n")}, "base64 in JSON, 'document'"),
        # AWS KMS's RecipientInfo
        (
            {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": BASE64},
            "base64 in JSON, 'AttestationDocument'",
        ),
        # a module's response as serde_json prints it, and a Buffer of Node
        ({"Attestation": {"document": list(DOCUMENT)}}, "an array of bytes in JSON, 'Attestation', 'document'"),
        ({"doc": {"type": "Buffer", "data": list(DOCUMENT)}}, "an array of bytes in JSON, 'doc', 'data'"),
        (list(DOCUMENT), "an array of bytes in JSON"),
        ([{"status": 200}, {"body": [BASE64]}], "base64 in JSON, 'body'"),
        ({"one": BASE64, "again": DOCUMENT.hex()}, None),  # the same document twice
        ({"\x1b[2J\u202e" + "x" * 99: BASE64}, None),
        (
            {"pem": f"-----BEGIN ATTESTATION-----\n{BASE64}\n-----END ATTESTATION-----", "certificate": CERTIFICATE},
            "base64 in a frame ATTESTATION in JSON, 'pem'",
        ),
        ({"nonce": "hESh", "count": 8444, "a": None, "b": [], "c": [True, 1.5], "d": {}, "document": BASE64}, None),
    ],
)
def test_json_that_holds_one(value: Any, form: str | None) -> None:
    for indent in (None, 4):
        said = found(json.dumps(value, indent=indent))
        assert form is None or said == form
        assert said.isascii()
        assert len(said) < 400


def test_a_frame() -> None:
    for label in ("ATTESTATION DOCUMENT", "COSE_Sign1", "x"):
        for text in (wrapped(BASE64, 64, "\n"), DOCUMENT.hex(), BASE64):
            frame = f"From the enclave:\n-----BEGIN {label}-----\n{text}\n-----END {label}-----\n"
            assert found(frame).endswith(f"in a frame {label}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_texts_with_a_byte_order_mark(encoding: str) -> None:
    mark = "\ufeff" if encoding in {"utf-16-le", "utf-16-be"} else ""
    assert found((mark + BASE64).encode(encoding)) == "base64"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "it is empty"),
        (" \n\t", "it is empty"),
        ("hello", "not an attestation document in base64"),
        ("garbage!", "not an attestation document in base64"),
        ("deadbeef", "not an attestation document in base64"),  # hexadecimal, and base64 too, of something else
        (base64.b64encode(b"something else").decode(), "not an attestation document in base64"),
        (b"\xef\xbb\xbf", "it is empty"),
        ("ümlaut", "not an attestation document in base64"),
        (DOCUMENT.hex()[:-1], "a digit is missing"),
        (BASE64[: len(BASE64) // 4 * 4 - 3], "a digit is missing"),
        (BASE64[:100] + "=" + BASE64[100:], "missing or misplaced"),
        (BASE64[:100] + "!" + BASE64[100:], "character 101 is '!'"),
        ("8444 a101 \u202e", r"character 9 is '\\u202e'"),
        ("{", "begins like JSON, but is not valid JSON"),
        ("[" * 100_000, "begins like JSON, but is not valid JSON"),
        ('"', "begins like JSON, but is not valid JSON"),
        ("{}", "JSON without an attestation document"),
        ("[]", "JSON without an attestation document"),
        (json.dumps({"PCR0": "00" * 48}), "JSON without an attestation document"),
        (json.dumps([132, 68, 256]), "JSON without an attestation document"),
        (json.dumps([132, 68, -1]), "JSON without an attestation document"),
        (json.dumps({"a": CERTIFICATE}), "JSON without an attestation document"),
        (json.dumps({"a": BASE64, "b": base64.b64encode(DOCUMENT + b"x").decode()}), "more than one document"),
        (CERTIFICATE, "the frame CERTIFICATE contains no attestation document"),
        ("-----BEGIN X-----\n" + BASE64, "the frame X has no end"),
        (f"-----BEGIN X-----\n{BASE64}\n-----END Y-----", "the frame X has no end"),
        (f"-----BEGIN X-----\n{BASE64}\n-----END X-----\n" * 2, "more than one frame"),
        ("-----BEGIN \x9b2J-----", "not an attestation document in base64"),
        (b"a" * (MAX_INPUT + 1), "more than 1048576 bytes"),
    ],
)
def test_a_text_without_exactly_one_document(data: bytes | str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        find_document(data.encode() if isinstance(data, str) else data, "FILE")
    refused(data)


@given(st.text())
def test_no_text_is_ever_a_verdict(text: str) -> None:
    """Anything that a person may paste: a document that begins like one, or an error that is not a rejection."""
    if decode_text(text.encode()) is None:
        return
    with contextlib.suppress(ConfigurationError):
        assert find_document(text.encode(), "FILE").data[0] in {0x84, 0xD2}


def test_control_characters_make_no_text() -> None:
    assert decode_text(b"a\tb\r\n\x0c") == "a\tb\r\n\x0c"
    for byte in (0, 7, 8, 11, 14, 27, 31, 127):
        assert decode_text(b"a" + bytes((byte,))) is None
    assert decode_text(b"\xff\xfea") is None  # half a character of UTF-16
