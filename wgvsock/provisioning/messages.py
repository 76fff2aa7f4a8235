"""The four messages of ``wgvsock/prov/1``, and ERROR: CBOR maps with integer keys, read and written in one form only.

Each message has exactly one encoding, the deterministic one of RFC 8949, section 4.2.1, and a reader refuses any
other. So a message that was decoded encodes to the bytes that arrived, and the signature over "REQUEST without its
signature" is over the same bytes at both ends.

Layouts in CDDL: docs/protocol/provisioning.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, TypeAlias

import cbor2

from wgvsock.attestation.cbor import CborValue, strict_loads
from wgvsock.attestation.errors import CborError
from wgvsock.provisioning.errors import BadCborError, BadFieldError, UnsupportedVersionError

VERSION: Final = 1

HELLO_LIMIT: Final = 256
REQUEST_LIMIT: Final = 8 * 1024
RESPONSE_LIMIT: Final = 16 * 1024
RESULT_LIMIT: Final = 256
"""Longest message of each kind in bytes, without its four bytes of length; an ERROR is held to HELLO_LIMIT or
RESPONSE_LIMIT, whichever message it stands in for."""

DOCUMENT_LIMIT: Final = 12_288
"""Bytes of an attestation document; the verifier's own limit."""

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
    """M0, enclave to relay: a fresh nonce and X25519 ephemeral, and what the enclave can do on the data plane."""

    nonce: bytes
    ephemeral: bytes
    capabilities: tuple[str, ...]

    def encode(self) -> bytes:
        """The message's bytes, without frame."""
        return _encode(MessageType.HELLO, {3: self.nonce, 4: self.ephemeral, 5: list(self.capabilities)})


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """The configuration as it travels: right in shape, its texts not yet understood (`TunnelConfig.from_fields`)."""

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
    """M1, relay to enclave: network settings, the relay's WireGuard key, a fresh nonce and X25519 ephemeral.

    Attributes:
        nonce: What the attestation document has to carry.
        relay_public_key: The relay's WireGuard key.
        ephemeral: The relay's half of the key agreement for the preshared key.
        epoch_ms: Orders signed requests; milliseconds of Unix time.
        config: What the enclave shall set up.
        signature: Ed25519 signature of the relay (`wgvsock.provisioning.pin`), with `signer`; or None.
        signer: The Ed25519 public key that verifies `signature`; or None.
    """

    nonce: bytes
    relay_public_key: bytes
    ephemeral: bytes
    epoch_ms: int
    config: ConfigFields
    signature: bytes | None = None
    signer: bytes | None = None

    def encode(self) -> bytes:
        """The message's bytes, without frame."""
        config = self.config
        fields: dict[int, CborValue] = {
            3: self.nonce,
            4: self.relay_public_key,
            5: self.ephemeral,
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
        }
        if self.signature is not None:
            fields[8] = self.signature
        if self.signer is not None:
            fields[9] = self.signer
        return _encode(MessageType.REQUEST, fields)

    def without_signature(self) -> Request:
        """What the signature is made over: this message without key 8."""
        return replace(self, signature=None)


@dataclass(frozen=True, slots=True)
class Response:
    """M2, enclave to relay: the attestation document."""

    document: bytes

    def encode(self) -> bytes:
        """The message's bytes, without frame."""
        return _encode(MessageType.RESPONSE, {3: self.document})


@dataclass(frozen=True, slots=True)
class Error:
    """In place of M0 or M2: the enclave refuses, and ends the exchange.

    Attributes:
        code: A `WireCode`, or a number that a later version defines.
        detail: Printable ASCII for the relay's log; never repeats what the relay sent.
    """

    code: int
    detail: str = ""

    def encode(self) -> bytes:
        """The message's bytes, without frame."""
        fields: dict[int, CborValue] = {3: self.code}
        if self.detail:
            fields[4] = self.detail[:_DETAIL_LIMIT]
        return _encode(MessageType.ERROR, fields)


@dataclass(frozen=True, slots=True)
class Result:
    """M3, relay to enclave: what the relay made of the document; 0 is accepted. Advisory."""

    code: int

    def encode(self) -> bytes:
        """The message's bytes, without frame."""
        return _encode(MessageType.RESULT, {3: self.code})


Message: TypeAlias = Hello | Request | Response | Error | Result


def decode_hello(message: bytes) -> Hello | Error:
    """Decode what a relay receives first.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is neither HELLO nor ERROR in its one encoding.
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


def decode_request(message: bytes) -> Request:
    """Decode what an enclave receives first.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is not REQUEST in its one encoding.
    """
    fields = _Fields(message, MessageType.REQUEST)
    fields.allow(required={3, 4, 5, 6, 7}, optional={8, 9})
    signed = fields.has(8)
    if signed != fields.has(9):
        raise BadFieldError("a signature and its key go together")
    return Request(
        nonce=fields.bytes_of(3, NONCE_BYTES),
        relay_public_key=fields.bytes_of(4, KEY_BYTES),
        ephemeral=fields.bytes_of(5, KEY_BYTES),
        epoch_ms=fields.uint(6, 0, _MAX_UINT),
        config=_config(fields.map_of(7)),
        signature=fields.bytes_of(8, SIGNATURE_BYTES) if signed else None,
        signer=fields.bytes_of(9, KEY_BYTES) if signed else None,
    )


def decode_response(message: bytes) -> Response | Error:
    """Decode what answers a REQUEST.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is neither RESPONSE nor ERROR in its one encoding.
    """
    fields = _Fields(message, MessageType.RESPONSE, MessageType.ERROR)
    if fields.type is MessageType.ERROR:
        return _error(fields)
    fields.allow(required={3})
    return Response(document=fields.bytes_between(3, 1, DOCUMENT_LIMIT))


def decode_result(message: bytes) -> Result:
    """Decode what a relay says last.

    Raises:
        BadCborError, UnsupportedVersionError, BadFieldError: It is not RESULT in its one encoding.
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
    """A decoded map whose fields are taken out with their types and ranges checked; `BadFieldError` otherwise."""

    __slots__ = ("_map", "_own", "type")

    def __init__(self, message: bytes, *expected: MessageType) -> None:
        try:
            value = strict_loads(message, max_depth=_MAX_DEPTH)
        except CborError as error:
            raise BadCborError(error.why) from None
        if not isinstance(value, dict):
            raise BadFieldError("a message is a map")
        self._map = value
        self._own = frozenset({1, 2})
        # The version comes first: whatever else a later version changes, it is told from garbage.
        if self.uint(1, 0, _MAX_UINT) != VERSION:
            raise UnsupportedVersionError(f"this side speaks version {VERSION}")
        kind = self.uint(2, 0, 255)
        if kind not in expected:
            raise BadFieldError("this message is not due now")
        if cbor2.dumps(value, canonical=True) != message:
            raise BadCborError("the keys of a map are not in their deterministic order")
        self.type = MessageType(kind)

    @classmethod
    def _nested(cls, value: dict[int | str, CborValue]) -> _Fields:
        fields = object.__new__(cls)
        fields._map = value
        fields._own = frozenset()
        return fields

    def allow(self, *, required: set[int], optional: frozenset[int] | set[int] = frozenset()) -> None:
        """Exactly the required keys and some of the optional ones are there."""
        keys = self._map.keys() - self._own
        if not required <= keys <= required | optional:
            raise BadFieldError("a key is missing or unknown")

    def has(self, key: int) -> bool:
        return key in self._map

    def uint(self, key: int, low: int, high: int) -> int:
        value = self._map.get(key)
        if type(value) is not int or not low <= value <= high:  # a bool is no number here
            raise BadFieldError(f"key {key} is no integer from {low} to {high}")
        return value

    def bytes_of(self, key: int, size: int) -> bytes:
        return self.bytes_between(key, size, size)

    def bytes_between(self, key: int, low: int, high: int) -> bytes:
        value = self._map.get(key)
        if not isinstance(value, bytes) or not low <= len(value) <= high:
            raise BadFieldError(f"key {key} is no byte string of the right length")
        return value

    def text(self, key: int, limit: int) -> str:
        return _text(self._map.get(key), limit)

    def texts(self, key: int, low: int, high: int, limit: int) -> tuple[str, ...]:
        value = self._map.get(key)
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise BadFieldError(f"key {key} is no list of {low} to {high} texts")
        return tuple(_text(item, limit) for item in value)

    def map_of(self, key: int) -> _Fields:
        value = self._map.get(key)
        if not isinstance(value, dict):
            raise BadFieldError(f"key {key} is no map")
        return self._nested(value)


def _text(value: CborValue, limit: int) -> str:
    """A short text of printable ASCII: no text of this protocol needs more, and none can break a line of a file."""
    if not isinstance(value, str) or not 0 < len(value) <= limit or not (value.isascii() and value.isprintable()):
        raise BadFieldError("a text is empty, too long, or not printable ASCII")
    return value
