"""Opens what crosses the vsock point with the entropy of one side: the laboratory's counterpart of Wireshark's key log.

The laboratory's enclave agent keeps a record of the entropy that it drew (production has nothing like it). Every
private key is one of those draws, and all other secrets of a session follow from the capture: the WireGuard handshake
as in whitepaper section 5.4, the sealed messages and the preshared key as in wgvsock/prov/1. That this works is itself
a check of both.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from scapy.contrib.wireguard import Wireguard, WireguardInitiation, WireguardResponse, WireguardTransport

from lab.watch.dissect import PROVISIONING_NAMES, Frame
from lab.watch.tap import Kind
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.wireguard import primitives

_PROVISIONING_TAG: Final = b"wgvsock/prov/1\0\0"
_MALFORMED: Final = (cbor2.CBORError, InvalidTag, LookupError, TypeError, ValueError)
"""A message of a party that does not follow the protocol: no key can be derived from it."""

_PSK_INFO: Final = b"wgvsock/1 wg-psk"
_SEALING_INFO: Final = {Kind.TO_ENCLAVE: b"wgvsock/1 prov to enclave", Kind.TO_RELAY: b"wgvsock/1 prov to relay"}
_CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


class EntropyLog:
    """The 32-byte draws of one side, by the X25519 public key that each would have as a private key."""

    def __init__(self) -> None:
        self._private: dict[bytes, bytes] = {}

    def add(self, draw: bytes) -> None:
        """Add one draw of 32 bytes."""
        public = X25519PrivateKey.from_private_bytes(draw).public_key()
        self._private[public.public_bytes(Encoding.Raw, PublicFormat.Raw)] = draw

    def __contains__(self, public_key: object) -> bool:
        return public_key in self._private

    def private(self, *public_keys: bytes) -> bytes:
        """Return the private key of the first of some public keys that was drawn here.

        Raises:
            LookupError: None was.
        """
        for public_key in public_keys:
            if public_key in self._private:
                return self._private[public_key]
        raise LookupError("no such private key was drawn here")

    def dh(self, one: bytes, other: bytes) -> bytes:
        """Return the DH of two public keys, one of whose private keys is in the log.

        Raises:
            LookupError: Neither is.
        """
        private = self.private(one, other)
        theirs = other if one in self else one
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(theirs))


@dataclass(slots=True)
class _Exchange:
    """One connection to the provisioning port. Fields that only REQUEST provides are empty before it."""

    hello: Frame
    secret: bytes = b""
    binding: bytes = b""
    transcript: bytes = b""

    def open(self, kind: Kind, counter: int, sealed: bytes, associated_data: bytes) -> dict[int, Any]:
        """Return a sealed message's map."""
        key = HKDF(algorithm=SHA256(), length=32, salt=self.binding, info=_SEALING_INFO[kind]).derive(self.secret)
        opened: dict[int, Any] = cbor2.loads(primitives.aead_open(key, counter, sealed, associated_data))
        return opened


@dataclass(slots=True)
class _Handshake:
    initiator: Kind
    ephemeral: bytes
    static: bytes
    responder_static: bytes
    chaining_key: bytes
    hash: bytes


def _hash_of_both(one: bytes, other: bytes) -> bytes:
    lengths = [struct.pack(">I", len(part)) + part for part in (one, other)]
    return hashlib.sha384(_PROVISIONING_TAG + b"".join(lengths)).digest()


class SessionOpener:
    """Follows the frames of the vsock point and opens what one side's entropy log allows.

    Args:
        log: The log of the Enclave or of the Relay.
    """

    def __init__(self, log: EntropyLog) -> None:
        self.provisioning: list[Frame] = []
        """The provisioning messages so far, with their maps as far as they could be opened."""
        self.key_log: list[str] = []
        """Yield the keys of each followed handshake, as lines of a Wireshark key log (wg.keylog_file)."""
        self._log = log
        self._exchanges: dict[int, _Exchange] = {}
        self._preshared_keys: list[bytes] = [bytes(32)]
        self._statics: dict[Kind, list[bytes]] = {Kind.TO_ENCLAVE: [], Kind.TO_RELAY: []}
        self._handshakes: dict[int, _Handshake] = {}
        self._keys: dict[int, bytes] = {}

    def open(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, bytes]]:
        """Yield each frame of transport data with its plaintext: empty for a keepalive, else a padded IP packet."""
        for frame in frames:
            if frame.port == PROVISIONING_PORT:
                self.provisioning.append(self._follow_provisioning(frame))
            elif frame.packet is not None:
                plaintext = self._follow_wireguard(frame)
                if plaintext is not None:
                    yield frame, plaintext

    def _follow_provisioning(self, frame: Frame) -> Frame:
        with contextlib.suppress(*_MALFORMED):
            if frame.name == "HELLO":
                self._exchanges[frame.connection] = _Exchange(frame)
            elif not frame.fields:
                fields = self._open_provisioning(self._exchanges[frame.connection], frame)
                return replace(frame, name=PROVISIONING_NAMES.get(fields[2], "unknown"), fields=fields)
        return frame

    def _open_provisioning(self, exchange: _Exchange, frame: Frame) -> dict[int, Any]:
        match frame.name:
            case "REQUEST":
                ephemeral, sealed = frame.payload[:32], frame.payload[32:]
                exchange.secret = self._log.dh(exchange.hello.fields[4], ephemeral)
                exchange.binding = _hash_of_both(exchange.hello.payload, ephemeral)
                fields = exchange.open(frame.kind, 0, sealed, exchange.binding)
                exchange.transcript = _hash_of_both(exchange.hello.payload, frame.payload)
                kdf = HKDF(algorithm=SHA256(), length=32, salt=exchange.transcript, info=_PSK_INFO)
                self._preshared_keys.append(kdf.derive(exchange.secret))
                self._statics[Kind.TO_ENCLAVE].append(fields[4])
            case "RESPONSE":
                fields = exchange.open(frame.kind, 0, frame.payload, exchange.transcript)
                if fields[2] == 2:
                    # The document is a COSE_Sign1. Its payload holds the Enclave's key as X25519 SubjectPublicKeyInfo.
                    document = cbor2.loads(cbor2.loads(fields[3])[2])
                    self._statics[Kind.TO_RELAY].append(document["public_key"][-32:])
            case _:
                fields = exchange.open(frame.kind, 1, frame.payload, exchange.transcript)
        return fields

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
        return _Handshake(initiator, ephemeral, static, responder_static, chaining_key, hash_)

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
                # A receiver index names the receiver's keypair: the initiator sends the responder's.
                self._keys[message.sender_index] = of_initiator
                self._keys[message.receiver_index] = of_responder
                self._note(handshake, ephemeral, preshared_key)
                return

    def _note(self, handshake: _Handshake, ephemeral: bytes, preshared_key: bytes) -> None:
        static_keys = handshake.static, handshake.responder_static
        keys = {
            "LOCAL_STATIC_PRIVATE_KEY": self._log.private(*static_keys),
            "REMOTE_STATIC_PUBLIC_KEY": static_keys[static_keys[0] in self._log],
            "LOCAL_EPHEMERAL_PRIVATE_KEY": self._log.private(handshake.ephemeral, ephemeral),
            "PRESHARED_KEY": preshared_key,  # Wireshark tries it with the ephemeral key before it
        }
        self.key_log += [f"{name} = {base64.b64encode(key).decode()}" for name, key in keys.items()]
