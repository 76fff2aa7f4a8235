"""The second implementation: WireGuard's cryptography in plain Python, from the RFCs and the Noise specification.

It shares nothing with wgvsock: no OpenSSL, no ``hashlib``, and the handshake is written as Noise token patterns
(The Noise Protocol Framework, revision 34), not as the whitepaper's formulas. Slow and not constant-time: only for
vectors.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# --- BLAKE2s, RFC 7693 ---------------------------------------------------------------------------------------------

_MASK = 0xFFFFFFFF
_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def _rotate_right(word: int, bits: int) -> int:
    return (word >> bits | word << (32 - bits)) & _MASK


def _compress(h: list[int], block: bytes, offset: int, *, last: bool) -> None:
    m = struct.unpack("<16I", block)
    v = [*h, *_IV]
    v[12] ^= offset & _MASK
    v[13] ^= offset >> 32
    if last:
        v[14] ^= _MASK
    for sigma in _SIGMA:
        for step, (a, b, c, d) in enumerate(_COLUMNS_AND_DIAGONALS):
            v[a] = (v[a] + v[b] + m[sigma[2 * step]]) & _MASK
            v[d] = _rotate_right(v[d] ^ v[a], 16)
            v[c] = (v[c] + v[d]) & _MASK
            v[b] = _rotate_right(v[b] ^ v[c], 12)
            v[a] = (v[a] + v[b] + m[sigma[2 * step + 1]]) & _MASK
            v[d] = _rotate_right(v[d] ^ v[a], 8)
            v[c] = (v[c] + v[d]) & _MASK
            v[b] = _rotate_right(v[b] ^ v[c], 7)
    for i in range(8):
        h[i] ^= v[i] ^ v[i + 8]


def blake2s(data: bytes, *, key: bytes = b"", size: int = 32) -> bytes:
    """BLAKE2s, optionally keyed."""
    h = list(_IV)
    h[0] ^= 0x01010000 ^ len(key) << 8 ^ size
    if key:
        data = key.ljust(64, b"\0") + data
    blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks[:-1]):
        _compress(h, block, (number + 1) * 64, last=False)
    _compress(h, blocks[-1].ljust(64, b"\0"), len(data), last=True)
    return struct.pack("<8I", *h)[:size]


# --- HMAC (RFC 2104) and HKDF as Noise section 4.3 writes it -------------------------------------------------------


def hmac(key: bytes, data: bytes) -> bytes:
    """HMAC-BLAKE2s with block size 64."""
    padded = (blake2s(key) if len(key) > 64 else key).ljust(64, b"\0")
    inner = blake2s(bytes(byte ^ 0x36 for byte in padded) + data)
    return blake2s(bytes(byte ^ 0x5C for byte in padded) + inner)


def hkdf(chaining_key: bytes, input_key_material: bytes, outputs: int) -> list[bytes]:
    """1 to 3 outputs."""
    temporary_key = hmac(chaining_key, input_key_material)
    result: list[bytes] = []
    for number in range(1, outputs + 1):
        result.append(hmac(temporary_key, (result[-1] if result else b"") + bytes([number])))
    return result


# --- X25519, RFC 7748 section 5 ------------------------------------------------------------------------------------

_P = 2**255 - 19
_A24 = 121665
BASE_POINT = (9).to_bytes(32, "little")


def x25519(scalar: bytes, u_coordinate: bytes) -> bytes:
    """The Montgomery ladder."""
    clamped = bytearray(scalar)
    clamped[0] &= 248
    clamped[31] = clamped[31] & 127 | 64
    k = int.from_bytes(clamped, "little")
    x1 = int.from_bytes(u_coordinate, "little") & (2**255 - 1)
    x2, z2, x3, z3 = 1, 0, x1, 1
    swapped = 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swapped ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swapped = bit
        a, b = x2 + z2, x2 - z2
        aa, bb = a * a % _P, b * b % _P
        e = aa - bb
        da, cb = (x3 - z3) * a, (x3 + z3) * b
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + _A24 * e) % _P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(32, "little")


# --- ChaCha20-Poly1305 (RFC 8439) and XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) ---------------------------------


def _chacha20_rounds(state: list[int]) -> list[int]:
    x = state[:]
    for _ in range(10):
        for a, b, c, d in _COLUMNS_AND_DIAGONALS:
            for first, second, third, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[first] = (x[first] + x[second]) & _MASK
                x[third] = _rotate_right(x[third] ^ x[first], 32 - bits)
    return x


def _chacha20_state(key: bytes, last_row: bytes) -> list[int]:
    return [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), *struct.unpack("<4I", last_row)]


def _chacha20(key: bytes, counter: int, nonce: bytes, data: bytes) -> bytes:
    output = bytearray()
    for number in range(0, len(data), 64):
        state = _chacha20_state(key, struct.pack("<I", counter + number // 64) + nonce)
        mixed = _chacha20_rounds(state)
        stream = struct.pack("<16I", *((a + b) & _MASK for a, b in zip(mixed, state, strict=True)))
        output += bytes(a ^ b for a, b in zip(data[number : number + 64], stream, strict=False))
    return bytes(output)


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Section 2.2: the rounds alone, first and last row."""
    mixed = _chacha20_rounds(_chacha20_state(key, nonce))
    return struct.pack("<8I", *mixed[:4], *mixed[12:])


def _poly1305(key: bytes, data: bytes) -> bytes:
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    accumulator = 0
    for number in range(0, len(data), 16):
        block = int.from_bytes(data[number : number + 16] + b"\1", "little")
        accumulator = (accumulator + block) * r % (2**130 - 5)
    return ((accumulator + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def chacha20_poly1305(key: bytes, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """AEAD_CHACHA20_POLY1305 with a 12-byte nonce."""
    ciphertext = _chacha20(key, 1, nonce, plaintext)
    tag_input = b"".join(
        [
            associated_data + bytes(-len(associated_data) % 16),
            ciphertext + bytes(-len(ciphertext) % 16),
            struct.pack("<QQ", len(associated_data), len(ciphertext)),
        ]
    )
    return ciphertext + _poly1305(_chacha20(key, 0, nonce, bytes(32)), tag_input)


def xchacha20_poly1305(key: bytes, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """The same with a 24-byte nonce."""
    return chacha20_poly1305(hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], plaintext, associated_data)


# --- Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, Noise specification sections 5, 7.5 and 9 ------------------------------


class SymmetricState:
    """Noise section 5.2."""

    def __init__(self, protocol_name: bytes) -> None:
        self.h = blake2s(protocol_name) if len(protocol_name) > 32 else protocol_name.ljust(32, b"\0")
        self.ck = self.h
        self.k = b""
        self.n = 0

    def mix_hash(self, data: bytes) -> None:
        """MixHash."""
        self.h = blake2s(self.h + data)

    def mix_key(self, material: bytes) -> None:
        """MixKey."""
        self.ck, self.k = hkdf(self.ck, material, 2)
        self.n = 0

    def mix_key_and_hash(self, material: bytes) -> None:
        """MixKeyAndHash."""
        self.ck, mixed, self.k = hkdf(self.ck, material, 3)
        self.n = 0
        self.mix_hash(mixed)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """EncryptAndHash."""
        ciphertext = chacha20_poly1305(self.k, struct.pack("<4xQ", self.n), plaintext, self.h)
        self.n += 1
        self.mix_hash(ciphertext)
        return ciphertext

    def split(self) -> tuple[bytes, bytes]:
        """Split."""
        first, second = hkdf(self.ck, b"", 2)
        return first, second


@dataclass(frozen=True)
class Transcript:
    """What a handshake with known keys looks like on the wire, and the keys that it yields."""

    initiation: bytes
    response: bytes
    initiator_to_responder_key: bytes
    responder_to_initiator_key: bytes


def wireguard_handshake(
    *,
    initiator_static: bytes,
    responder_static: bytes,
    initiator_ephemeral: bytes,
    responder_ephemeral: bytes,
    preshared_key: bytes,
    timestamp: bytes,
    initiator_index: int,
    responder_index: int,
) -> Transcript:
    """Both messages of a handshake without cookies, from all private keys at once."""
    s_i, s_r, e_i, e_r = (
        x25519(private, BASE_POINT)
        for private in (initiator_static, responder_static, initiator_ephemeral, responder_ephemeral)
    )
    noise = SymmetricState(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
    noise.mix_hash(b"WireGuard v1 zx2c4 Jason@zx2c4.com")  # prologue
    noise.mix_hash(s_r)  # <- s
    # -> e, es, s, ss; in psk handshakes e is also mixed into the key
    noise.mix_hash(e_i)
    noise.mix_key(e_i)
    noise.mix_key(x25519(initiator_ephemeral, s_r))
    encrypted_static = noise.encrypt_and_hash(s_i)
    noise.mix_key(x25519(initiator_static, s_r))
    encrypted_timestamp = noise.encrypt_and_hash(timestamp)
    initiation = with_macs(struct.pack("<II", 1, initiator_index) + e_i + encrypted_static + encrypted_timestamp, s_r)
    # <- e, ee, se, psk
    noise.mix_hash(e_r)
    noise.mix_key(e_r)
    noise.mix_key(x25519(responder_ephemeral, e_i))
    noise.mix_key(x25519(responder_ephemeral, s_i))
    noise.mix_key_and_hash(preshared_key)
    nothing = noise.encrypt_and_hash(b"")
    response = with_macs(struct.pack("<III", 2, responder_index, initiator_index) + e_r + nothing, s_i)
    return Transcript(initiation, response, *noise.split())


def with_macs(body: bytes, receiver: bytes, cookie: bytes | None = None) -> bytes:
    """Whitepaper section 5.4.4."""
    mac1 = blake2s(body, key=blake2s(b"mac1----" + receiver), size=16)
    mac2 = blake2s(body + mac1, key=cookie, size=16) if cookie is not None else bytes(16)
    return body + mac1 + mac2


def transport_data(key: bytes, receiver_index: int, counter: int, packet: bytes) -> bytes:
    """Whitepaper section 5.4.6."""
    padded = packet + bytes(-len(packet) % 16)
    header = struct.pack("<IIQ", 4, receiver_index, counter)
    return header + chacha20_poly1305(key, struct.pack("<4xQ", counter), padded, b"")


def cookie_reply(responder: bytes, cookie: bytes, *, nonce: bytes, receiver_index: int, mac1: bytes) -> bytes:
    """Whitepaper section 5.4.7."""
    sealed = xchacha20_poly1305(blake2s(b"cookie--" + responder), nonce, cookie, mac1)
    return struct.pack("<II", 3, receiver_index) + nonce + sealed
