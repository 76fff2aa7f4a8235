"""The second implementation of how ``wgvsock/prov/1`` seals: plain Python, on `tests.vectors.reference`.

Written from docs/protocol/provisioning.md, FIPS 180-4 (SHA-2), RFC 2104 (HMAC) and RFC 5869 (HKDF). No OpenSSL, no
``hashlib``, no ``hmac``, nothing of wgvsock. Slow and not constant-time: only for vectors.
"""

from __future__ import annotations

import struct
from itertools import count, islice
from math import isqrt

from tests.vectors.reference import BASE_POINT, chacha20_poly1305, x25519

TAG = b"wgvsock/prov/1\0\0"

_PRIMES = [n for n in islice(count(2), 408) if all(n % d for d in range(2, isqrt(n) + 1))]  # the first 80


def _fraction(prime: int, root: int, bits: int) -> int:
    """The first bits of the fractional part of a prime's square or cube root (FIPS 180-4, sections 4.2 and 5.3)."""
    scaled = prime << root * bits
    low, high = 0, 1 << bits + 5
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**root <= scaled else (low, middle)
    return low & (1 << bits) - 1


def _sha2(data: bytes, bits: int, start: list[int], turns: tuple[tuple[int, int, int], ...]) -> bytes:
    rounds = {32: 64, 64: 80}[bits]
    mask, block = (1 << bits) - 1, bits * 2
    constants = [_fraction(prime, 3, bits) for prime in _PRIMES[:rounds]]

    def rotate(word: int, by: int) -> int:
        return (word >> by | word << bits - by) & mask

    def sigma(word: int, which: int) -> int:
        one, two, three = turns[which]
        return rotate(word, one) ^ rotate(word, two) ^ (rotate(word, three) if which < 2 else word >> three)

    length = struct.pack(">Q", len(data) * 8).rjust(block // 8, b"\0")
    data += b"\x80" + bytes(-(len(data) + 1 + len(length)) % block) + length
    state = list(start)
    for offset in range(0, len(data), block):
        words = list(struct.unpack_from(f">16{'I' if bits == 32 else 'Q'}", data, offset))
        for t in range(16, rounds):
            words.append((sigma(words[t - 2], 3) + words[t - 7] + sigma(words[t - 15], 2) + words[t - 16]) & mask)
        a, b, c, d, e, f, g, h = state
        for constant, word in zip(constants, words, strict=True):
            first = h + sigma(e, 1) + (e & f ^ ~e & g) + constant + word
            second = sigma(a, 0) + (a & b ^ a & c ^ b & c)
            a, b, c, d, e, f, g, h = (first + second) & mask, a, b, c, (d + first) & mask, e, f, g
        state = [(old + new) & mask for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True)]
    return b"".join(word.to_bytes(bits // 8, "big") for word in state)


def sha256(data: bytes) -> bytes:
    """FIPS 180-4, section 6.2."""
    start = [_fraction(prime, 2, 32) for prime in _PRIMES[:8]]
    return _sha2(data, 32, start, ((2, 13, 22), (6, 11, 25), (7, 18, 3), (17, 19, 10)))


def sha384(data: bytes) -> bytes:
    """FIPS 180-4, section 6.5."""
    start = [_fraction(prime, 2, 64) for prime in _PRIMES[8:16]]
    return _sha2(data, 64, start, ((28, 34, 39), (14, 18, 41), (1, 8, 7), (19, 61, 6)))[:48]


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """RFC 2104 with block size 64."""
    padded = (sha256(key) if len(key) > 64 else key).ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in padded) + data)
    return sha256(bytes(byte ^ 0x5C for byte in padded) + inner)


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869, one block of output."""
    return hmac_sha256(hmac_sha256(salt, secret), info + b"\1")


def exchange(hello: bytes, enclave: bytes, relay: bytes, *held: bytes) -> dict[str, bytes]:
    """One exchange, with everything that is computed in it.

    Args:
        hello: M0.
        enclave: The Enclave's ephemeral private key.
        relay: The Relay's.
        held: What M1, M2 and M3 hold.
    """
    request, response, result = held
    enclave_public, relay_public = x25519(enclave, BASE_POINT), x25519(relay, BASE_POINT)
    secret = x25519(enclave, relay_public)
    assert secret == x25519(relay, enclave_public)
    binding = sha384(TAG + struct.pack(">I", len(hello)) + hello + struct.pack(">I", 32) + relay_public)
    to_enclave = hkdf_sha256(secret, binding, b"wgvsock/1 prov to enclave")
    to_relay = hkdf_sha256(secret, binding, b"wgvsock/1 prov to relay")
    first, second = bytes(12), bytes(4) + b"\1" + bytes(7)
    m1 = relay_public + chacha20_poly1305(to_enclave, first, request, binding)
    transcript = sha384(TAG + struct.pack(">I", len(hello)) + hello + struct.pack(">I", len(m1)) + m1)
    return {
        "enclave_ephemeral_private": enclave,
        "enclave_ephemeral": enclave_public,
        "relay_ephemeral_private": relay,
        "relay_ephemeral": relay_public,
        "shared_secret": secret,
        "m0": hello,
        "binding": binding,
        "key_to_enclave": to_enclave,
        "key_to_relay": to_relay,
        "request": request,
        "m1": m1,
        "transcript": transcript,
        "response": response,
        "m2": chacha20_poly1305(to_relay, first, response, transcript),
        "result": result,
        "m3": chacha20_poly1305(to_enclave, second, result, transcript),
        "preshared_key": hkdf_sha256(secret, transcript, b"wgvsock/1 wg-psk"),
    }
