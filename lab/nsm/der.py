"""Certificates that no library wants to build: the signed part of one, edited and signed again."""

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
        edit: From the encoded fields of TBSCertificate to those to put in their place.
    """
    signed_part, algorithm, _signature = elements(elements(certificate)[0], nested=True)
    edited = encode(SEQUENCE, b"".join(edit(elements(signed_part, nested=True))))
    signature = key.sign(edited, ec.ECDSA(hashes.SHA384()))
    return encode(SEQUENCE, edited + algorithm + encode(BIT_STRING, b"\x00" + signature))


def as_version_1(fields: list[bytes]) -> list[bytes]:
    """An X.509 version 1 certificate names no version and has no extensions."""
    return [field for field in fields if field[0] not in {VERSION, EXTENSIONS}]


def with_negative_serial(fields: list[bytes]) -> list[bytes]:
    """Serial number -1, behind the version."""
    return [fields[0], b"\x02\x01\xff", *fields[2:]]


def elements(data: bytes, *, nested: bool = False) -> list[bytes]:
    """The encoded elements that stand one behind the other in `data`, or in the one element that `data` is."""
    position, end = (_content(data, 0)) if nested else (0, len(data))
    found = []
    while position < end:
        _, following = _content(data, position)
        found.append(data[position:following])
        position = following
    return found


def encode(tag: int, content: bytes) -> bytes:
    """One element with a definite length."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _content(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of the element at `position` begins and ends."""
    first = data[position + 1]
    if first < 0x80:
        return position + 2, position + 2 + first
    start = position + 2 + (first & 0x7F)
    return start, start + int.from_bytes(data[position + 2 : start], "big")
