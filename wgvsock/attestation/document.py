"""Strict parser of the attestation document: a tagged or untagged COSE_Sign1 around a CBOR map.

Checks 1 to 4 of the verifier. Layout: AWS Nitro Enclaves user guide, "Verifying the root of trust"; RFC 9052, section
4.2. Nothing is trusted here: parsing precedes the check of the signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeGuard

import cbor2

from wgvsock.attestation import errors
from wgvsock.attestation.cbor import CborValue, strict_loads

MAX_DOCUMENT_SIZE: Final = 12_288
"""Bytes. The NSM answers in one buffer of 0x3000 bytes. Real documents have 4.4 to 5.2 KB."""

MAX_PCRS: Final = 32
PCR_SIZE: Final = 48
"""Bytes of a SHA-384 digest."""

_TAG_COSE_SIGN1: Final = 0xD2  # tag 18, the only tag that may precede the array (RFC 9052, table 1)
_PROTECTED_ES384: Final = bytes.fromhex("a1013822")  # {1: -35}: algorithm ES384 (RFC 9053, table 1)
_SIGNATURE_SIZE: Final = 96  # r and s, 48 bytes each, big-endian (RFC 9053, section 2.1)

# AWS's guide gives 512 in one place and 1024 in another for the optional fields. Accept the larger.
_MAX_FIELD: Final = 1024
_MAX_CERTIFICATE: Final = 1024
_MAX_CABUNDLE: Final = 5
_MAX_MODULE_ID: Final = 128  # real ones have 39 characters
_MAX_TIMESTAMP: Final = 1 << 53  # JSON readers keep smaller integers exact


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """The fields of a document, and the received bytes that its signature covers.

    `timestamp_ms` is Unix time in milliseconds. `cabundle` starts with the root, and `certificate` is the leaf, all in
    DER. `pcrs` holds 48 bytes each, `signature` 96.
    """

    protected: bytes
    payload: bytes
    signature: bytes
    module_id: str
    timestamp_ms: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    def signed_bytes(self) -> bytes:
        """The bytes of the Sig_structure (RFC 9052, section 4.4): the protected header and the payload as received."""
        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])


def parse_document(data: bytes) -> AttestationDocument:
    """Parse a document.

    Args:
        data: The bytes that the NSM returned.

    Raises:
        RejectedDocumentError: One of the classes of checks 1 to 4.
    """
    if not 0 < len(data) <= MAX_DOCUMENT_SIZE:
        raise errors.DocumentSizeError(f"{len(data)} bytes are not within 1 to {MAX_DOCUMENT_SIZE}")
    envelope = _decode(data[1:] if data[0] == _TAG_COSE_SIGN1 else data)
    protected, payload, signature = _open_envelope(envelope)
    # Since summer 2025 AWS encodes this map with indefinite length, ``bf … ff``. Older documents begin with a9.
    fields = _decode(payload, may_be_open=True)
    if not isinstance(fields, dict):
        raise errors.PayloadStructureError("the payload is not a map")
    if "nitrotpm_pcrs" in fields:  # whatever else it holds: an instance's document is never an enclave's
        raise errors.NitroTpmDocumentError("it holds nitrotpm_pcrs: an instance's NitroTPM made it, not an enclave")
    _check_digest(fields)
    return AttestationDocument(
        protected=protected,
        payload=payload,
        signature=signature,
        module_id=_module_id(fields),
        timestamp_ms=_timestamp(fields),
        pcrs=_pcrs(fields),
        certificate=_certificate(fields),
        cabundle=_cabundle(fields),
        # AWS's CDDL wants at least 1 byte in public_key, but all three are empty in some real documents. The binding
        # refuses an empty key.
        public_key=_optional(fields, "public_key", errors.PayloadPublicKeyError),
        user_data=_optional(fields, "user_data", errors.PayloadUserDataError),
        nonce=_optional(fields, "nonce", errors.PayloadNonceError),
    )


def _decode(data: bytes, *, may_be_open: bool = False) -> CborValue:
    try:
        return strict_loads(data, may_be_open=may_be_open)
    except errors.CborError as error:
        raise errors.MalformedDocumentError(error.why) from None


def _open_envelope(envelope: CborValue) -> tuple[bytes, bytes, bytes]:
    """COSE_Sign1 = [protected: bstr, unprotected: map, payload: bstr, signature: bstr]."""
    match envelope:
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            pass
        case _:
            raise errors.CoseStructureError("it is not an array of byte string, map, byte string, byte string")
    if protected != _PROTECTED_ES384:
        raise errors.CoseProtectedHeaderError("the algorithm is not ES384, or is not encoded as AWS encodes it")
    if unprotected:
        raise errors.CoseUnprotectedHeaderError("there are unprotected header parameters")
    if len(signature) != _SIGNATURE_SIZE:
        raise errors.CoseStructureError(f"the signature has {len(signature)} bytes instead of {_SIGNATURE_SIZE}")
    return protected, payload, signature


_Fields = dict[int | str, CborValue]


def _check_digest(fields: _Fields) -> None:
    # PCRs are SHA-384 digests. In a document that names another hash, the values mean something else.
    if fields.get("digest") != "SHA384":
        raise errors.PayloadDigestError('the digest is not "SHA384"')


def _module_id(fields: _Fields) -> str:
    # "i-…-enc" and 16 hexadecimal digits. It has to be printable ASCII, because it appears in logs and on terminals.
    value = fields.get("module_id")
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_MODULE_ID:
        raise errors.PayloadModuleIdError("it is missing, not text, or too long")
    if not all("!" <= character <= "~" for character in value):
        raise errors.PayloadModuleIdError("it contains characters other than printable ASCII")
    return value


def _timestamp(fields: _Fields) -> int:
    value = fields.get("timestamp")
    if not _is_integer(value) or not 0 < value < _MAX_TIMESTAMP:
        raise errors.PayloadTimestampError("it is missing, not an integer, or out of range")
    return value


def _pcrs(fields: _Fields) -> Mapping[int, bytes]:
    value = fields.get("pcrs")
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_PCRS:
        raise errors.PayloadPcrsError(f"they are missing, not a map, or not 1 to {MAX_PCRS}")
    pcrs: dict[int, bytes] = {}
    for index, digest in value.items():
        if not _is_integer(index) or not 0 <= index < MAX_PCRS:
            raise errors.PayloadPcrsError(f"an index is not within 0 to {MAX_PCRS - 1}")
        if not isinstance(digest, bytes) or len(digest) != PCR_SIZE:
            raise errors.PayloadPcrsError(f"PCR{index} does not have {PCR_SIZE} bytes")
        pcrs[index] = digest
    return MappingProxyType(pcrs)


def _certificate(fields: _Fields) -> bytes:
    value = fields.get("certificate")
    if not isinstance(value, bytes) or not 0 < len(value) <= _MAX_CERTIFICATE:
        raise errors.PayloadCertificateError(f"it is missing, not a byte string, or not 1 to {_MAX_CERTIFICATE} bytes")
    return value


def _cabundle(fields: _Fields) -> tuple[bytes, ...]:
    value = fields.get("cabundle")
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_CABUNDLE:
        raise errors.PayloadCabundleError(f"it is missing, not an array, or not 1 to {_MAX_CABUNDLE} certificates")
    bundle: list[bytes] = []
    for item in value:
        if not isinstance(item, bytes) or not 0 < len(item) <= _MAX_CERTIFICATE:
            raise errors.PayloadCabundleError(f"an item is not a byte string of 1 to {_MAX_CERTIFICATE} bytes")
        bundle.append(item)
    return tuple(bundle)


def _optional(fields: _Fields, name: str, error: type[errors.RejectedDocumentError]) -> bytes | None:
    """An optional field: null, absent (older documents), or a byte string of up to 1024 bytes."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) > _MAX_FIELD:
        raise error(f"it is not a byte string of 0 to {_MAX_FIELD} bytes")
    return value


def _is_integer(value: CborValue) -> TypeGuard[int]:
    """Whether a value is a CBOR integer. bool is a subclass of int in Python, but not in CBOR."""
    return isinstance(value, int) and not isinstance(value, bool)
