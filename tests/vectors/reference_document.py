"""A second implementation of reading and verifying a document: plain Python from the RFCs, no library beneath it.

CBOR from RFC 8949, in all its forms. ECDSA from FIPS 186-5, section 6.4.2, on P-384 (SP 800-186, section 3.2.1.4). Of
X.509 only what a signature needs. Slow, and lenient where it does not matter: it reports a document's contents and
whether each signature is valid, and nothing about policy.
"""

from __future__ import annotations

import hashlib
from typing import Any

P = 2**384 - 2**128 - 2**96 + 2**32 - 1
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
B = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
G = (
    0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
    0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
)
SPKI = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")  # id-ecPublicKey on P-384 (RFC 5480)

Point = tuple[int, int] | None


def read_document(document: bytes) -> dict[Any, Any]:
    """The payload of an untagged COSE_Sign1 (RFC 9052, section 4.2)."""
    fields = cbor(document)
    return dict(cbor(fields[2]))


def signatures_are_right(document: bytes) -> bool:
    """Return whether the leaf signed the document, and each certificate of the bundle the next one."""
    protected, _, payload, signature = cbor(document)
    fields = cbor(payload)
    chain = [*fields["cabundle"], fields["certificate"]]
    signed = b"\x84\x6aSignature1" + _bytes_head(protected) + b"\x40" + _bytes_head(payload)  # RFC 9052, section 4.4
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    return ecdsa(_key(chain[-1]), signed, r, s) and all(
        ecdsa(_key(parent), *_signed_part(child)) for parent, child in zip([chain[0], *chain], chain, strict=False)
    )


def cbor(data: bytes) -> Any:
    """The one item that `data` is."""
    value, end = _item(data, 0)
    if end != len(data):
        raise ValueError("bytes follow the item")
    return value


BREAK = object()


def _item(data: bytes, at: int) -> tuple[Any, int]:
    major, low = data[at] >> 5, data[at] & 31
    at += 1
    count: int | None = low
    if 24 <= low <= 27:
        size = 1 << (low - 24)
        count, at = int.from_bytes(data[at : at + size], "big"), at + size
    elif low == 31:
        count = None  # of indefinite length; alone a break
    match major:
        case 0 | 1:
            assert count is not None
            return (count if major == 0 else -1 - count), at
        case 2 | 3 if count is not None:
            text = data[at : at + count]
            return (text if major == 2 else text.decode()), at + count
        case 2 | 3:
            parts, at = _items(data, at, None)
            return (b"" if major == 2 else "").join(parts), at
        case 4:
            return _items(data, at, count)
        case 5:
            flat, at = _items(data, at, None if count is None else 2 * count)
            return dict(zip(flat[::2], flat[1::2], strict=True)), at
        case 7:
            return {20: False, 21: True, 22: None, 31: BREAK}[low], at
    raise ValueError("a tag")


def _items(data: bytes, at: int, count: int | None) -> tuple[list[Any], int]:
    items: list[Any] = []
    while count is None or len(items) < count:
        value, at = _item(data, at)
        if value is BREAK:
            break
        items.append(value)
    return items, at


def _bytes_head(content: bytes) -> bytes:
    size = len(content)
    return (bytes((0x40 + size,)) if size < 24 else b"\x59" + size.to_bytes(2, "big")) + content


def ecdsa(key: Point, message: bytes, r: int, s: int) -> bool:
    """Return whether (r, s) is the key's signature with SHA-384."""
    if not (0 < r < N and 0 < s < N):
        return False
    e, w = int.from_bytes(hashlib.sha384(message).digest(), "big"), pow(s, -1, N)
    point = add(multiply(e * w % N, G), multiply(r * w % N, key))
    return point is not None and point[0] % N == r


def add(a: Point, b: Point) -> Point:
    """The sum of two points of y² = x³ - 3x + B."""
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    slope = (3 * a[0] ** 2 - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope**2 - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(k: int, point: Point) -> Point:
    """A multiple of a point, by doubling and adding."""
    total: Point = None
    while k:
        total = add(total, point) if k & 1 else total
        point, k = add(point, point), k >> 1
    return total


def _key(certificate: bytes) -> Point:
    at = certificate.index(SPKI) + len(SPKI)
    return int.from_bytes(certificate[at : at + 48], "big"), int.from_bytes(certificate[at + 48 : at + 96], "big")


def _signed_part(certificate: bytes) -> tuple[bytes, int, int]:
    """TBSCertificate, r and s (RFC 5280, section 4.1; RFC 5480, appendix A: a sequence of two integers)."""
    begin, _ = _der(certificate, 0)
    _, behind = _der(certificate, begin)
    _, signature = _der(certificate, behind)
    sequence, _ = _der(certificate, signature)
    first, _ = _der(certificate, sequence + 1)  # the bit string's number of unused bits precedes it
    _, second_at = _der(certificate, first)
    start, end = _der(certificate, second_at)
    r_start, r_end = _der(certificate, first)
    r, s = int.from_bytes(certificate[r_start:r_end], "big"), int.from_bytes(certificate[start:end], "big")
    return certificate[begin:behind], r, s


def _der(data: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the element at `at` begins and ends."""
    length, start = data[at + 1], at + 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[at + 2 : start], "big")
    return start, start + length
