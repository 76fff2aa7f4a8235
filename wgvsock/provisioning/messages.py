"""The four messages of ``wgvsock/prov/1`` and ERROR: CBOR maps with integer keys, in exactly one encoding.

The encoding is the deterministic one of RFC 8949, section 4.2.1, and a reader refuses any other. So a decoded message
encodes to the bytes that arrived, and the signature over "REQUEST without its signature" covers the same bytes at both
ends.

HELLO is sent in the clear. REQUEST is the relay's ephemeral key followed by a sealed map, and every later message is
sealed (`wgvsock.provisioning.sealing`).

Layouts in CDDL: docs/protocol/provisioning.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, TypeAlias

import cbor2

from wgvsock.attestation.cbor import CborValue, strict_loads
from wgvsock.attestation.errors import CborError
from wgvsock.provisioning.errors import (
    BadCborError,
    BadFieldError,
    BadFrameError,
    MalformedMessageError,
    UnsupportedVersionError,
    WireCode,
)
from wgvsock.provisioning.sealing import TAG_BYTES

VERSION: Final = 1

HELLO_LIMIT: Final = 256
REQUEST_LIMIT: Final = 8 * 1024
RESPONSE_LIMIT: Final = 16 * 1024
RESULT_LIMIT: Final = 256
"""Longest message of each kind in bytes on the wire, with its ephemeral key and its tag, without its four bytes of
length. The limit of an ERROR is that of the message that it replaces. Valid messages need less: a REQUEST 2 KiB, a
RESPONSE 12,313 bytes."""

CLEAR_ERRORS: Final = frozenset(
    {WireCode.BAD_FRAME, WireCode.BAD_FIELD, WireCode.BUSY, WireCode.RATE_LIMITED, WireCode.TIMEOUT}
)
"""Errors that an enclave reports before it has keys: a REQUEST cannot be opened, or did not arrive. An attacker in
between can forge them, but gains no more than by cutting the connection. Every other code has to be sealed."""

DOCUMENT_LIMIT: Final = 12_288
"""Bytes of an attestation document, as in the verifier."""

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_DETAIL_LIMIT: Final = 128
_TEXT_LIMIT: Final = 255  # a search name has at most 253 bytes, and nothing else in a configuration is longer
_CAPABILITY_LIMIT: Final = 32
_CAPABILITIES: Final = 8
_MAX_UINT: Final = (1 << 53) - 1  # exact in every CBOR and JSON implementation; in milliseconds, 285,000 years
_MAX_DEPTH: Final = 3  # message, configuration, list


class MessageType(IntEnum):
    """The value of key 2."""

    HELLO = 0
    REQUEST = 1
    RESPONSE = 2
    RESULT = 3
    ERROR = 255


@dataclass(frozen=True, slots=True)
class Hello:
    """M0, enclave to relay: a fresh nonce, an X25519 ephemeral key (32 bytes each), and the data plane capabilities."""

    nonce: bytes
    ephemeral: bytes
    capabilities: tuple[str, ...]

    def encode(self) -> bytes:
        """The message's bytes, without its frame."""
        return _encode(MessageType.HELLO, {3: self.nonce, 4: self.ephemeral, 5: list(self.capabilities)})


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """The configuration as it is sent: correct in structure, with texts not parsed yet (`TunnelConfig.from_fields`)."""

    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    mtu: int
    allowed_ips: tuple[str, ...]
    nameservers: tuple[str, ...]
    search: tuple[str, ...]
    resolver_options: tuple[str, ...]
    persistent_keepalive: int
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """The sealed part of M1, relay to enclave: network settings, the relay's WireGuard key and a fresh nonce.

    It does not repeat the relay's ephemeral key, which precedes it, and which the signature covers through H.

    Attributes:
        nonce: The nonce for the attestation document, 32 bytes.
        relay_public_key: The relay's WireGuard key, 32 bytes.
        epoch_ms: Orders signed requests. Milliseconds of Unix time.
        config: The settings for the enclave.
        signature: Ed25519 signature of the relay (`wgvsock.provisioning.pin`), 64 bytes, or None.
        signer: The Ed25519 public key of the signature, 32 bytes, or None.
        incarnation: When this relay's process started, in milliseconds of Unix time. Of two relays with one signing
            key, the one that started later is served.
    """

    nonce: bytes
    relay_public_key: bytes
    epoch_ms: int
    config: ConfigFields
    signature: bytes | None = None
    signer: bytes | None = None
    incarnation: int = 0

    def encode(self) -> bytes:
        """The message's bytes, without its frame."""
        config = self.config
        fields: dict[int, CborValue] = {
            3: self.nonce,
            4: self.relay_public_key,
            6: self.epoch_ms,
            7: {
                1: list(config.addresses),
                2: list(config.gateways),
                3: config.mtu,
                4: list(config.allowed_ips),
                5: list(config.nameservers),
                6: list(config.search),
                7: list(config.resolver_options),
                8: config.persistent_keepalive,
                9: list(config.capabilities),
            },
            10: self.incarnation,
        }
        if self.signature is not None:
            fields[8] = self.signature
        if self.signer is not None:
            fields[9] = self.signer
        return _encode(MessageType.REQUEST, fields)

    def without_signature(self) -> Request:
        """This message without key 8, over which the signature is made."""
        return replace(self, signature=None)


@dataclass(frozen=True, slots=True)
class Response:
    """M2, enclave to relay: the attestation document."""

    document: bytes

    def encode(self) -> bytes:
        """The message's bytes, without its frame."""
        return _encode(MessageType.RESPONSE, {3: self.document})


@dataclass(frozen=True, slots=True)
class Error:
    """Instead of M0 or M2: the enclave refuses, and ends the exchange.

    Attributes:
        code: A `WireCode`, or a number that a later version defines.
        detail: Up to 128 characters of printable ASCII for the relay's log. It never repeats what the relay sent.
    """

    code: int
    detail: str = ""

    def encode(self) -> bytes:
        """The message's bytes, without its frame."""
        fields: dict[int, CborValue] = {3: self.code}
        if self.detail:
            fields[4] = self.detail[:_DETAIL_LIMIT]
        return _encode(MessageType.ERROR, fields)


@dataclass(frozen=True, slots=True)
class Result:
    """M3, relay to enclave: the relay's verdict on the document. 0 means accepted. Advisory."""

    code: int

    def encode(self) -> bytes:
        """The message's bytes, without its frame."""
        return _encode(MessageType.RESULT, {3: self.code})


Message: TypeAlias = Hello | Request | Response | Error | Result


def decode_hello(message: bytes) -> Hello | Error:
    """Decode the first message that a relay receives, up to 256 bytes.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is not a correctly encoded HELLO or ERROR.
    """
    fields = _Fields(message, MessageType.HELLO, MessageType.ERROR)
    if fields.type is MessageType.ERROR:
        return _error(fields)
    fields.allow(required={3, 4, 5})
    return Hello(
        nonce=fields.bytes_of(3, NONCE_BYTES),
        ephemeral=fields.bytes_of(4, KEY_BYTES),
        capabilities=fields.texts(5, 0, _CAPABILITIES, _CAPABILITY_LIMIT),
    )


def split_request(message: bytes) -> tuple[bytes, bytes]:
    """Split M1 into the relay's ephemeral key (32 bytes) and the sealed message.

    Raises:
        BadFrameError: It is too short to contain both.
    """
    if len(message) <= KEY_BYTES + TAG_BYTES:
        raise BadFrameError("a request is too short for a key and a sealed message")
    return message[:KEY_BYTES], message[KEY_BYTES:]


def decode_request(message: bytes) -> Request:
    """Decode the opened message of M1, up to 8 KiB.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is not a correctly encoded REQUEST.
    """
    fields = _Fields(message, MessageType.REQUEST)
    fields.allow(required={3, 4, 6, 7, 10}, optional={8, 9})
    signed = fields.has(8)
    if signed != fields.has(9):
        raise BadFieldError("there is a signature without its key, or a key without its signature")
    return Request(
        nonce=fields.bytes_of(3, NONCE_BYTES),
        relay_public_key=fields.bytes_of(4, KEY_BYTES),
        epoch_ms=fields.uint(6, 0, _MAX_UINT),
        config=_config(fields.map_of(7)),
        signature=fields.bytes_of(8, SIGNATURE_BYTES) if signed else None,
        signer=fields.bytes_of(9, KEY_BYTES) if signed else None,
        incarnation=fields.uint(10, 0, _MAX_UINT),
    )


def decode_response(message: bytes) -> Response | Error:
    """Decode the answer to a REQUEST, up to 16 KiB.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is not a correctly encoded RESPONSE or ERROR.
    """
    fields = _Fields(message, MessageType.RESPONSE, MessageType.ERROR)
    if fields.type is MessageType.ERROR:
        return _error(fields)
    fields.allow(required={3})
    return Response(document=fields.bytes_between(3, 1, DOCUMENT_LIMIT))


def decode_clear_error(message: bytes) -> Error:
    """Decode an ERROR that was sent in the clear instead of a RESPONSE, up to 16 KiB.

    Raises:
        BadFrameError: It is not an ERROR, or its code is not in `CLEAR_ERRORS`.
    """
    try:
        error = decode_response(message)
    except MalformedMessageError:
        error = None
    if not isinstance(error, Error) or error.code not in CLEAR_ERRORS:
        raise BadFrameError("a message cannot be opened with the keys of this exchange")
    return error


def decode_result(message: bytes) -> Result:
    """Decode the last message of a relay, up to 256 bytes.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is not a correctly encoded RESULT.
    """
    fields = _Fields(message, MessageType.RESULT)
    fields.allow(required={3})
    return Result(code=fields.uint(3, 0, 255))


def _error(fields: _Fields) -> Error:
    fields.allow(required={3}, optional={4})
    detail = fields.text(4, _DETAIL_LIMIT) if fields.has(4) else ""
    return Error(code=fields.uint(3, 1, 255), detail=detail)


def _config(fields: _Fields) -> ConfigFields:
    fields.allow(required={1, 2, 3, 4, 5, 6, 7, 8, 9})
    return ConfigFields(
        addresses=fields.texts(1, 1, 4, _TEXT_LIMIT),
        gateways=fields.texts(2, 1, 2, _TEXT_LIMIT),
        mtu=fields.uint(3, 1280, 65_535),
        allowed_ips=fields.texts(4, 1, 16, _TEXT_LIMIT),
        nameservers=fields.texts(5, 0, 3, _TEXT_LIMIT),
        search=fields.texts(6, 0, 6, _TEXT_LIMIT),
        resolver_options=fields.texts(7, 0, 8, _TEXT_LIMIT),
        persistent_keepalive=fields.uint(8, 0, 65_535),
        capabilities=fields.texts(9, 0, _CAPABILITIES, _CAPABILITY_LIMIT),
    )


def _encode(kind: MessageType, fields: dict[int, CborValue]) -> bytes:
    return cbor2.dumps({1: VERSION, 2: int(kind), **fields}, canonical=True)


class _Fields:
    """A decoded map. Its accessors check types and ranges, and raise `BadFieldError`."""

    __slots__ = ("_map", "_own", "type")

    def __init__(self, message: bytes, *expected: MessageType) -> None:
        try:
            value = strict_loads(message, max_depth=_MAX_DEPTH)
        except CborError as error:
            raise BadCborError(error.why) from None
        if not isinstance(value, dict):
            raise BadFieldError("a message is not a map")
        self._map = value
        self._own = frozenset({1, 2})
        # Check the version first, so that a later version is recognised whatever else it changes.
        if self.uint(1, 0, _MAX_UINT) != VERSION:
            raise UnsupportedVersionError(f"this side speaks version {VERSION}")
        kind = self.uint(2, 0, 255)
        if kind not in expected:
            raise BadFieldError("this message was not expected now")
        if cbor2.dumps(value, canonical=True) != message:
            raise BadCborError("the keys of a map are not in deterministic order")
        self.type = MessageType(kind)

    @classmethod
    def _nested(cls, value: dict[int | str, CborValue]) -> _Fields:
        fields = object.__new__(cls)
        fields._map = value
        fields._own = frozenset()
        return fields

    def allow(self, *, required: set[int], optional: frozenset[int] | set[int] = frozenset()) -> None:
        """Check that all required keys are present, and no others except optional ones."""
        keys = self._map.keys() - self._own
        if not required <= keys <= required | optional:
            raise BadFieldError("a key is missing or unknown")

    def has(self, key: int) -> bool:
        return key in self._map

    def uint(self, key: int, low: int, high: int) -> int:
        value = self._map.get(key)
        if type(value) is not int or not low <= value <= high:  # excludes bool
            raise BadFieldError(f"key {key} is not an integer from {low} to {high}")
        return value

    def bytes_of(self, key: int, size: int) -> bytes:
        return self.bytes_between(key, size, size)

    def bytes_between(self, key: int, low: int, high: int) -> bytes:
        value = self._map.get(key)
        if not isinstance(value, bytes) or not low <= len(value) <= high:
            raise BadFieldError(f"key {key} is not a byte string of the right length")
        return value

    def text(self, key: int, limit: int) -> str:
        return _text(self._map.get(key), limit)

    def texts(self, key: int, low: int, high: int, limit: int) -> tuple[str, ...]:
        value = self._map.get(key)
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise BadFieldError(f"key {key} is not a list of {low} to {high} texts")
        return tuple(_text(item, limit) for item in value)

    def map_of(self, key: int) -> _Fields:
        value = self._map.get(key)
        if not isinstance(value, dict):
            raise BadFieldError(f"key {key} is not a map")
        return self._nested(value)


def _text(value: CborValue, limit: int) -> str:
    """Check a short text of printable ASCII. The protocol needs no more, and such text cannot end a line in a file."""
    if not isinstance(value, str) or not 0 < len(value) <= limit or not (value.isascii() and value.isprintable()):
        raise BadFieldError("a text is empty, too long, or not printable ASCII")
    return value
