"""The functions of whitepaper section 5.4, with the names used there, on top of ``hashlib`` and ``cryptography``.

Limits of Python: ``bytes`` objects are immutable, so the outputs of HASH, HMAC and DH stay in memory until the
allocator reuses it. Secrets that outlive one function call are kept in ``bytearray`` objects and overwritten by `wipe`.
OpenSSL cleanses keys inside ``cryptography``'s objects when they are freed.
"""

from __future__ import annotations

import hashlib
import hmac as _hmac
import struct
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from wgvsock.wireguard.constants import HASH_SIZE, KEY_SIZE, MAC_SIZE
from wgvsock.x25519 import WeakKeyError, exchange

Random = Callable[[int], bytes]
"""Returns that many bytes from a cryptographically secure source."""

Bytes = bytes | bytearray | memoryview

_WORDS: Final = struct.Struct("<16I")
_CHACHA20_CONSTANTS: Final = struct.unpack("<4I", b"expand 32-byte k")


def hash_(*inputs: Bytes) -> bytes:
    """HASH(input): BLAKE2s (RFC 7693), 32 bytes, of the concatenated inputs."""
    return hashlib.blake2s(b"".join(inputs), digest_size=HASH_SIZE).digest()


def mac(key: Bytes, *inputs: Bytes) -> bytes:
    """MAC(key, input): keyed BLAKE2s of the concatenated inputs. The key has at most 32 bytes, the output 16."""
    return hashlib.blake2s(b"".join(inputs), key=key, digest_size=MAC_SIZE).digest()


def hmac(key: Bytes, *inputs: Bytes) -> bytes:
    """HMAC(key, input): HMAC (RFC 2104) with BLAKE2s, 32 bytes, of the concatenated inputs."""
    return _hmac.digest(bytes(key), b"".join(inputs), "blake2s")


def kdf1(key: Bytes, data: Bytes) -> bytes:
    """KDF1(key, input): HKDF (RFC 5869) with HMAC-BLAKE2s, the first output, 32 bytes."""
    return hmac(hmac(key, data), b"\x01")


def kdf2(key: Bytes, data: Bytes) -> tuple[bytes, bytes]:
    """KDF2(key, input): the first two outputs, 32 bytes each."""
    tau0 = hmac(key, data)
    tau1 = hmac(tau0, b"\x01")
    return tau1, hmac(tau0, tau1, b"\x02")


def kdf3(key: Bytes, data: Bytes) -> tuple[bytes, bytes, bytes]:
    """KDF3(key, input): the first three outputs, 32 bytes each."""
    tau0 = hmac(key, data)
    tau1 = hmac(tau0, b"\x01")
    tau2 = hmac(tau0, tau1, b"\x02")
    return tau1, tau2, hmac(tau0, tau2, b"\x03")


def aead(key: Bytes, counter: int, plaintext: Bytes, auth: Bytes) -> bytes:
    """AEAD(key, counter, plaintext, auth): ChaCha20-Poly1305 (RFC 8439).

    Args:
        key: 32 bytes.
        counter: 64 bits. The nonce is 4 zero bytes followed by the little-endian counter.
        plaintext: The bytes to encrypt.
        auth: The bytes to authenticate in addition.

    Returns:
        Ciphertext and tag, 16 bytes longer than the plaintext.
    """
    return ChaCha20Poly1305(key).encrypt(struct.pack("<4xQ", counter), plaintext, auth)


def aead_open(key: Bytes, counter: int, ciphertext: Bytes, auth: Bytes) -> bytes:
    """Inverse of `aead`.

    Returns:
        The plaintext, 16 bytes shorter than the ciphertext.

    Raises:
        InvalidTag: The ciphertext or the associated data is not what was sealed under this key and counter.
    """
    return ChaCha20Poly1305(key).decrypt(struct.pack("<4xQ", counter), ciphertext, auth)


def xaead(key: Bytes, nonce: bytes, plaintext: Bytes, auth: Bytes) -> bytes:
    """XAEAD(key, nonce, plaintext, auth): XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha).

    Args:
        key: 32 bytes.
        nonce: 24 bytes.
        plaintext: The bytes to encrypt.
        auth: The bytes to authenticate in addition.

    Returns:
        Ciphertext and tag, 16 bytes longer than the plaintext.
    """
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plaintext, auth)


def xaead_open(key: Bytes, nonce: bytes, ciphertext: Bytes, auth: Bytes) -> bytes:
    """Inverse of `xaead`.

    Returns:
        The plaintext, 16 bytes shorter than the ciphertext.

    Raises:
        InvalidTag: The ciphertext or the associated data is not what was sealed under this key and nonce.
    """
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).decrypt(bytes(4) + nonce[16:], ciphertext, auth)


def hchacha20(key: Bytes, nonce: bytes) -> bytes:
    """HChaCha20 (draft-irtf-cfrg-xchacha, section 2.2): 32-byte key, 16-byte nonce, 32-byte subkey.

    A ChaCha20 block is the permuted state plus the initial state. HChaCha20 is the first and the last row of the
    permuted state. Both rows start from public values. Subtracting those from a block's rows yields the permuted rows.
    """
    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    words = _WORDS.unpack(block)
    first = (word - start for word, start in zip(words[:4], _CHACHA20_CONSTANTS, strict=True))
    last = (word - start for word, start in zip(words[12:], struct.unpack("<4I", nonce), strict=True))
    return struct.pack("<8I", *(word & 0xFFFFFFFF for word in (*first, *last)))


def dh(private: X25519PrivateKey, public: Bytes) -> bytes:
    """DH(private key, public key): X25519 (RFC 7748).

    Args:
        private: Our private key.
        public: The public key, 32 bytes.

    Returns:
        The shared secret, 32 bytes.

    Raises:
        WeakKeyError: The shared secret is all zeros (RFC 7748, section 6.1: a public key of low order).
    """
    return exchange(private, bytes(public))


def dh_generate(random: Random) -> tuple[X25519PrivateKey, bytes]:
    """DH-GENERATE(): a new private key and its public key, 32 bytes."""
    private = X25519PrivateKey.from_private_bytes(random(KEY_SIZE))
    return private, private.public_key().public_bytes_raw()


def generate_private_key(random: Random) -> bytes:
    """A private key in the clamped form that ``wg genkey`` prints (RFC 7748, section 5), 32 bytes."""
    scalar = bytearray(random(KEY_SIZE))
    scalar[0] &= 0b1111_1000
    scalar[31] = scalar[31] & 0b0111_1111 | 0b0100_0000
    private_key = bytes(scalar)
    wipe(scalar)
    return private_key


def public_key(private_key: Bytes) -> bytes:
    """The public key of a private key, both 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def equal(a: Bytes, b: Bytes) -> bool:
    """Compare in a time that depends only on the length."""
    return _hmac.compare_digest(a, b)


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place."""
    secret[:] = bytes(len(secret))


__all__ = [
    "Bytes",
    "InvalidTag",
    "Random",
    "WeakKeyError",
    "aead",
    "aead_open",
    "dh",
    "dh_generate",
    "equal",
    "generate_private_key",
    "hash_",
    "hchacha20",
    "hmac",
    "kdf1",
    "kdf2",
    "kdf3",
    "mac",
    "public_key",
    "wipe",
    "xaead",
    "xaead_open",
]
