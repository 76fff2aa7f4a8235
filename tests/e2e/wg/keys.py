"""Keys of the tests' devices, as ``wg`` writes them."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from wgvsock.wireguard import public_key


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair that is always the same for a name."""

    private: str
    public: str

    @property
    def public_bytes(self) -> bytes:
        return base64.b64decode(self.public)


def identity(name: str) -> Identity:
    private = bytearray(hashlib.sha256(name.encode()).digest())
    private[0] &= 248
    private[31] = private[31] & 127 | 64
    return Identity(_text(bytes(private)), _text(public_key(bytes(private))))


def preshared_key(name: str) -> str:
    return _text(hashlib.sha256(b"psk" + name.encode()).digest())


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
