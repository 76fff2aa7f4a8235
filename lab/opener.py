"""Opens what crosses the vsock point, with the entropy of one side: the laboratory's likeness of Wireshark's key log.

The laboratory's enclave agent keeps a record of the entropy that it drew (production has no such thing). Every private
key is one of those draws, and all other secrets of a session follow from what was captured: the WireGuard handshake as
in whitepaper section 5.4, the preshared key as in wgvsock/prov/1. That they do is itself a check of both.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from scapy.contrib.wireguard import Wireguard, WireguardInitiation, WireguardResponse, WireguardTransport

from lab.dissect import Frame
from lab.tap import Kind
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.wireguard import primitives

_PROVISIONING_TAG: Final = b"wgvsock/prov/1\0\0"
_MALFORMED: Final = (cbor2.CBORError, LookupError, TypeError, ValueError)
"""What a message of somebody who does not keep to the protocol runs into: no key comes of it."""

_PSK_INFO: Final = b"wgvsock/1 wg-psk"
_CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


class EntropyLog:
    """The 32-byte draws of one side, by the X25519 public key that each would have as a private key."""

    def __init__(self) -> None:
        self._private: dict[bytes, bytes] = {}

    def add(self, draw: bytes) -> None:
        """Note one draw of 32 bytes."""
        public = X25519PrivateKey.from_private_bytes(draw).public_key()
        self._private[public.public_bytes(Encoding.Raw, PublicFormat.Raw)] = draw

    def __contains__(self, public_key: object) -> bool:
        return public_key in self._private

    def dh(self, one: bytes, other: bytes) -> bytes:
        """DH of two public keys, one of whose private keys is in the log.

        Raises:
            LookupError: Neither is.
        """
        for mine, theirs in ((one, other), (other, one)):
            if private := self._private.get(mine):
                return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(theirs))
        raise LookupError("neither private key was drawn here")


@dataclass(slots=True)
class _Handshake:
    initiator: Kind
    ephemeral: bytes
    static: bytes
    chaining_key: bytes
    hash: bytes


class SessionOpener:
    """Follows the frames of the vsock point and opens what one side's entropy log lets it open.

    Args:
        log: Of the Enclave or of the Relay.
    """

    def __init__(self, log: EntropyLog) -> None:
        self._log = log
        self._hello: Frame | None = None
        self._preshared_keys: list[bytes] = [bytes(32)]
        self._statics: dict[Kind, list[bytes]] = {Kind.TO_ENCLAVE: [], Kind.TO_RELAY: []}
        self._handshakes: dict[int, _Handshake] = {}
        self._keys: dict[int, bytes] = {}

    def open(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, bytes]]:
        """Each frame of transport data with its plaintext: empty for a keepalive, else a padded IP packet."""
        for frame in frames:
            if frame.port == PROVISIONING_PORT:
                with contextlib.suppress(*_MALFORMED):
                    self._follow_provisioning(frame)
            elif frame.packet is not None:
                plaintext = self._follow_wireguard(frame)
                if plaintext is not None:
                    yield frame, plaintext

    def _follow_provisioning(self, frame: Frame) -> None:
        fields = frame.fields
        match frame.name:
            case "HELLO":
                self._hello = frame
            case "REQUEST" if self._hello is not None:
                hello = self._hello.payload
                lengths = [struct.pack(">I", len(part)) + part for part in (hello, frame.payload)]
                transcript = hashlib.sha384(_PROVISIONING_TAG + b"".join(lengths)).digest()
                secret = self._log.dh(self._hello.fields[4], fields[5])
                self._preshared_keys.append(
                    HKDF(algorithm=SHA256(), length=32, salt=transcript, info=_PSK_INFO).derive(secret)
                )
                self._statics[Kind.TO_ENCLAVE].append(fields[4])
            case "RESPONSE":
                # The document is a COSE_Sign1; its payload holds the Enclave's key as X25519 SubjectPublicKeyInfo.
                document = cbor2.loads(cbor2.loads(fields[3])[2])
                self._statics[Kind.TO_RELAY].append(document["public_key"][-32:])

    def _follow_wireguard(self, frame: Frame) -> bytes | None:
        message = frame.packet[Wireguard]
        if WireguardInitiation in message:
            self._follow_initiation(frame, message[WireguardInitiation])
        elif WireguardResponse in message:
            self._follow_response(frame, message[WireguardResponse])
        elif WireguardTransport in message:
            transport = message[WireguardTransport]
            if key := self._keys.get(transport.receiver_index):
                with contextlib.suppress(InvalidTag):
                    return primitives.aead_open(key, transport.counter, transport.encrypted_encapsulated_packet, b"")
        return None

    def _follow_initiation(self, frame: Frame, message: Any) -> None:
        responder = Kind.TO_RELAY if frame.kind is Kind.TO_ENCLAVE else Kind.TO_ENCLAVE
        for static in reversed(self._statics[responder]):
            with contextlib.suppress(InvalidTag, LookupError):
                self._handshakes[message.sender_index] = self._consume_initiation(frame.kind, message, static)
                return

    def _consume_initiation(self, initiator: Kind, message: Any, responder_static: bytes) -> _Handshake:
        chaining_key = primitives.hash_(_CONSTRUCTION)
        hash_ = primitives.hash_(primitives.hash_(chaining_key, _IDENTIFIER), responder_static)
        ephemeral = message.unencrypted_ephemeral
        chaining_key, hash_ = primitives.kdf1(chaining_key, ephemeral), primitives.hash_(hash_, ephemeral)
        chaining_key, key = primitives.kdf2(chaining_key, self._log.dh(ephemeral, responder_static))
        static = primitives.aead_open(key, 0, message.encrypted_static, hash_)
        hash_ = primitives.hash_(hash_, message.encrypted_static)
        chaining_key, key = primitives.kdf2(chaining_key, self._log.dh(static, responder_static))
        primitives.aead_open(key, 0, message.encrypted_timestamp, hash_)
        hash_ = primitives.hash_(hash_, message.encrypted_timestamp)
        return _Handshake(initiator, ephemeral, static, chaining_key, hash_)

    def _follow_response(self, frame: Frame, message: Any) -> None:
        handshake = self._handshakes.get(message.receiver_index)
        if handshake is None or handshake.initiator is frame.kind:
            return
        ephemeral = message.unencrypted_ephemeral
        chaining_key = primitives.kdf1(handshake.chaining_key, ephemeral)
        hash_ = primitives.hash_(handshake.hash, ephemeral)
        chaining_key = primitives.kdf1(chaining_key, self._log.dh(handshake.ephemeral, ephemeral))
        chaining_key = primitives.kdf1(chaining_key, self._log.dh(handshake.static, ephemeral))
        for preshared_key in reversed(self._preshared_keys):
            with contextlib.suppress(InvalidTag):
                session, tau, key = primitives.kdf3(chaining_key, preshared_key)
                primitives.aead_open(key, 0, message.encrypted_nothing, primitives.hash_(hash_, tau))
                of_initiator, of_responder = primitives.kdf2(session, b"")
                # A receiver index names the keypair of whoever receives: the initiator sends the responder's.
                self._keys[message.sender_index] = of_initiator
                self._keys[message.receiver_index] = of_responder
                return
