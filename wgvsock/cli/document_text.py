"""Finds an attestation document in any common form: as bytes, as text, or inside something else.

It recognises base64 (wrapped, URL-safe, without padding), hexadecimal, JSON that contains one of these or an array of
bytes under any key (KMS's ``AttestationDocument``, a module's response as Rust prints it, a Buffer of Node), and a
frame of ``-----BEGIN …-----``. This module only finds the document. The verifier decides whether it is genuine.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wgvsock.errors import ConfigurationError

MAX_INPUT: Final = 1 << 20
"""Bytes. A document of 12,288 bytes as an indented JSON array of numbers takes about 200,000. The rest is for the text
around it."""

_BYTE_ORDER_MARKS: Final = (  # PowerShell redirects output to files as UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_BETWEEN: Final = re.compile(r"\s+|\\[rn]")  # white space, also as JSON and shells escape it
_HEX: Final = re.compile(r"(?:0x)?((?:[0-9a-f]{2}:?)+)", re.ASCII | re.IGNORECASE)
_BASE64: Final = re.compile(r"([A-Za-z0-9+/_-]+)={0,2}", re.ASCII)
_URL_SAFE: Final = str.maketrans("-_", "+/")
_BEGIN: Final = re.compile(r"-----BEGIN ([A-Za-z0-9 ._-]{1,64})-----", re.ASCII)
_BYTE_STRING: Final = range(0x40, 0x5C)  # first bytes of a CBOR byte string (RFC 8949, section 3.1)
_BEGINNING: Final = bytes.fromhex("8444a1013822")  # an array of four, the protected header with ES384
_MAX_KEY_SHOWN: Final = 64  # characters


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """The bytes of a document that is not verified yet, and a description of the form in which they were found."""

    data: bytes
    form: str


def find_document(data: bytes, source: str) -> FoundDocument:
    """Find the only document in some input.

    Bytes that are not text always count as a document. The verifier then says what is wrong with them.

    Args:
        data: The input, up to one byte beyond `MAX_INPUT`, so that a text that is too long can be noticed.
        source: Where it comes from, for the error.

    Raises:
        ConfigurationError: The input is text that is too long, or does not contain exactly one document.
    """
    text = decode_text(data)
    if text is None:
        return FoundDocument(data, "raw CBOR" if _begins_like_a_document(data) else "bytes of no known form")
    if len(data) > MAX_INPUT:
        raise _unreadable(source, f"it is text of more than {MAX_INPUT} bytes")
    text = text.strip()
    if not text:
        raise _unreadable(source, "it is empty")
    try:
        if text[0] in '{["':
            return _find_in_json(text)
        found = _find_in_text(text)
    except _NoDocumentError as error:
        raise _unreadable(source, str(error)) from None
    if found is None:
        raise _unreadable(source, _what_is_wrong(text))
    return found


def decode_text(data: bytes) -> str | None:
    """Decode UTF-8, or the encoding that a byte order mark indicates. None if `data` is not text."""
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


class _NoDocumentError(Exception):
    """The reason why there is no document, or not exactly one."""


def _find_in_text(text: str) -> FoundDocument | None:
    """A document that is the whole text or is inside a frame."""
    frame = _BEGIN.search(text)
    if frame is None:
        return _find_in_digits(text)
    end = text.find(f"-----END {frame[1]}-----", frame.end())
    if end < 0:
        raise _NoDocumentError(f"the frame {frame[1]} has no end")
    if _BEGIN.search(text, end):
        raise _NoDocumentError("it contains more than one frame")
    found = _find_in_digits(text[frame.end() : end])
    if found is None:
        raise _NoDocumentError(f"the frame {frame[1]} contains no attestation document")
    return FoundDocument(found.data, f"{found.form} in a frame {frame[1]}")


def _find_in_digits(text: str) -> FoundDocument | None:
    digits = _BETWEEN.sub("", text)
    if match := _HEX.fullmatch(digits):
        data = bytes.fromhex(match[1].replace(":", ""))
        if _begins_like_a_document(data):
            return FoundDocument(data, "hexadecimal")
    if match := _BASE64.fullmatch(digits):
        standard = match[1].translate(_URL_SAFE)
        try:
            data = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        except binascii.Error:  # one character too many, or too few
            return None
        if _begins_like_a_document(data):
            return FoundDocument(data, "base64" if standard == match[1] else "URL-safe base64")
    return None


def _begins_like_a_document(data: bytes) -> bool:
    """Whether this is an array of four that begins with a byte string, perhaps tagged 18 (RFC 9052, section 4.2)."""
    start = 1 if data[:1] == b"\xd2" else 0
    return data[start : start + 1] == b"\x84" and data[start + 1 : start + 2] != b"" and data[start + 1] in _BYTE_STRING


def _find_in_json(text: str) -> FoundDocument:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _NoDocumentError("it begins like JSON, but is not valid JSON") from None
    found = {document.data: document for document in _documents(value)}  # the same document twice is unambiguous
    # About one random text in 2,000 begins like a document. Prefer those that begin exactly as AWS writes them.
    found = {data: document for data, document in found.items() if _BEGINNING in data[:7]} or found
    if not found:
        raise _NoDocumentError("it is JSON without an attestation document")
    if len(found) > 1:
        forms = " and ".join(document.form for document in list(found.values())[:2])
        raise _NoDocumentError(f"it contains more than one document: {forms}")
    return next(iter(found.values()))


def _documents(value: object) -> Iterator[FoundDocument]:
    waiting = [("JSON", value)]
    while waiting:
        place, value = waiting.pop()
        match value:
            case str():
                found = _find_in_text_of_json(value)
            case list() if data := _bytes_of(value):
                found = FoundDocument(data, "an array of bytes") if _begins_like_a_document(data) else None
            case list():
                waiting += [(place, item) for item in value]
                continue
            case dict():
                waiting += [(f"{place}, {key[:_MAX_KEY_SHOWN]!a}", item) for key, item in value.items()]
                continue
            case _:
                continue
        if found:
            yield FoundDocument(found.data, f"{found.form} in {place}")


def _bytes_of(array: list[object]) -> bytes:
    """The bytes in an array of numbers from 0 to 255. Empty for any other array."""
    numbers = [item for item in array if isinstance(item, int) and 0 <= item < 256]
    return bytes(numbers) if len(numbers) == len(array) else b""


def _find_in_text_of_json(text: str) -> FoundDocument | None:
    try:
        return _find_in_text(text)
    except _NoDocumentError:  # such as a certificate
        return None


def _what_is_wrong(text: str) -> str:
    digits = _BETWEEN.sub("", text)
    stranger = re.search(r"[^A-Za-z0-9+/_=:-]", digits)
    if digits.startswith(("8444", "hE", "d284", "0oR")):
        if stranger:
            return f"it begins like a document, but character {stranger.start() + 1} is {stranger[0]!a}"
        return "it begins like a document in base64 or hexadecimal, but a digit is missing or misplaced"
    return "it is not an attestation document in base64, hexadecimal, JSON or a PEM-like frame"


def _unreadable(source: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no attestation document in {source}",
        why=why,
        fix="give the document as bytes, base64 or hexadecimal, or JSON or a PEM-like frame that contains it",
    )
