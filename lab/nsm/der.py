"""Certificates that no library will build: the signed part of one, edited and signed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

SEQUENCE: Final = 0x30
BIT_STRING: Final = 0x03
VERSION: Final = 0xA0  # [0] of TBSCertificate (RFC 5280, section 4.1)
EXTENSIONS: Final = 0xA3  # [3]


def resigned(certificate: bytes, key: ec.EllipticCurvePrivateKey, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Edit the fields of a certificate's signed part, and sign it again with SHA-384.

    Args:
        certificate: DER.
        key: The issuer's.
        edit: Takes the encoded fields of TBSCertificate, and returns their replacements.
    """
    signed_part, _algorithm, _signature = elements(elements(certificate)[0], nested=True)
    fields = edit(elements(signed_part, nested=True))
    edited = encode(SEQUENCE, b"".join(fields))
    # The outer algorithm has to equal the inner one (RFC 5280, section 4.1.1.2), after an explicit version here.
    algorithm = fields[2 if fields[0][0] == VERSION else 1]
    signature = key.sign(edited, ec.ECDSA(hashes.SHA384()))
    return encode(SEQUENCE, edited + algorithm + encode(BIT_STRING, b"\x00" + signature))


def as_version_1(fields: list[bytes]) -> list[bytes]:
    """Return the fields of an X.509 version 1 certificate, which names no version and has no extensions."""
    return [field for field in fields if field[0] not in {VERSION, EXTENSIONS}]


def with_negative_serial(fields: list[bytes]) -> list[bytes]:
    """Set the serial number, after the version, to -1."""
    return [fields[0], b"\x02\x01\xff", *fields[2:]]


def with_serial_zero(fields: list[bytes]) -> list[bytes]:
    """Set the serial number, after the version, to 0."""
    return [fields[0], b"\x02\x01\x00", *fields[2:]]


def with_null_parameters(fields: list[bytes]) -> list[bytes]:
    """Set the parameters of the signature's algorithm, after the serial number, to NULL."""
    return [*fields[:2], _with_null(fields[2]), *fields[3:]]


def _with_null(algorithm: bytes) -> bytes:
    return encode(SEQUENCE, elements(algorithm, nested=True)[0] + b"\x05\x00")


def elements(data: bytes, *, nested: bool = False) -> list[bytes]:
    """Return the consecutive encoded elements in `data`, or in the single element that `data` is."""
    position, end = (_content(data, 0)) if nested else (0, len(data))
    found = []
    while position < end:
        _, following = _content(data, position)
        found.append(data[position:following])
        position = following
    return found


def encode(tag: int, content: bytes) -> bytes:
    """Return one element with a definite length."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _content(data: bytes, position: int) -> tuple[int, int]:
    """Return where the content of the element at `position` begins and ends."""
    first = data[position + 1]
    if first < 0x80:
        return position + 2, position + 2 + first
    start = position + 2 + (first & 0x7F)
    return start, start + int.from_bytes(data[position + 2 : start], "big")
