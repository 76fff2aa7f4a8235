"""The verifier: every check of a document in order, failing closed, each with an error class of its own.

``authenticate`` says that a genuine module made the document (checks 1 to 7), ``Verifier.verify`` that it is fresh,
answers our nonce and comes from an allowed image (8 to 11), ``Verifier.verify_enclave`` that it speaks for the very
enclave and the very exchange that the relay means (12 and 13). Only the last one makes an `AttestedEnclave`, and only
an `AttestedEnclave` becomes a peer.

ECDSA signatures are malleable: one document has more than one valid encoding. Replays are found by the nonce, never by
a hash of the document.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from wgvsock.attestation import errors
from wgvsock.attestation.binding import (
    decode_x25519_spki,
    extended_pcr,
    has_small_order,
    parse_enclave_id,
    wireguard_key_commitment,
)
from wgvsock.attestation.certificates import verify_chain
from wgvsock.attestation.document import PCR_SIZE, AttestationDocument, parse_document
from wgvsock.attestation.policy import (
    IMAGE_PCRS,
    INSTANCE_PCR,
    MIN_NONCE_SIZE,
    ROLE_PCR,
    Expectations,
    Policy,
)
from wgvsock.errors import ConfigurationError, LocalProtocolError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_CREATED_HERE: Final = object()


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """What a document says that passed checks 1 to 11.

    `timestamp` is the module's clock, UTC; `pcrs` holds the locked PCRs, 48 bytes each.
    """

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    nonce: bytes | None
    user_data: bytes | None
    public_key: bytes | None


@dataclass(frozen=True, slots=True)
class AttestedEnclave:
    """An enclave that passed every check; `wireguard_public_key` (32 bytes) is its key and no other one.

    `Verifier.verify_enclave` makes these and nothing else can.

    Raises:
        LocalProtocolError: Something else tried.
    """

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    wireguard_public_key: bytes
    _made_by: InitVar[object]

    def __post_init__(self, _made_by: object) -> None:
        if _made_by is not _CREATED_HERE:
            raise LocalProtocolError("cannot declare an enclave attested", why="only the verifier of its document can")


class Verifier:
    """Holds a policy and applies it to documents; keeps no state between them."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def verify(self, document: bytes, *, nonce: bytes, now: datetime) -> VerifiedDocument:
        """Apply checks 1 to 11.

        Args:
            document: The bytes as received.
            nonce: What the document was asked to carry; at least 16 unguessable bytes, used once.
            now: The verifier's wall clock; aware.

        Raises:
            RejectedDocumentError: The class names the check that failed first.
        """
        policy = self._policy
        parsed = authenticate(document, accepted_roots=policy.accepted_roots, now=now)
        check_freshness(parsed, now=now, max_age=policy.max_age, max_future=policy.max_future)
        check_nonce(parsed.nonce, nonce)
        check_image_pcrs(parsed.pcrs, allow_debug=policy.allow_debug)
        check_pcr_sets(parsed.pcrs, [allowed.values for allowed in policy.pcr_sets])
        return VerifiedDocument(
            module_id=parsed.module_id,
            timestamp=_EPOCH + parsed.timestamp_ms * _MILLISECOND,
            pcrs=parsed.pcrs,
            nonce=parsed.nonce,
            user_data=parsed.user_data,
            public_key=parsed.public_key,
        )

    def verify_enclave(
        self, document: bytes, *, nonce: bytes, now: datetime, expectations: Expectations
    ) -> AttestedEnclave:
        """Apply all checks, and vouch for the enclave.

        Args:
            document: The bytes as received.
            nonce: What the relay put into its request.
            now: The relay's wall clock; aware.
            expectations: What the relay knows of the enclave and of the exchange.

        Raises:
            RejectedDocumentError: The class names the check that failed first.
        """
        verified = self.verify(document, nonce=nonce, now=now)
        check_identity(verified, expectations)
        public_key = check_binding(verified, expectations)
        return AttestedEnclave(
            module_id=verified.module_id,
            timestamp=verified.timestamp,
            pcrs=verified.pcrs,
            wireguard_public_key=public_key,
            _made_by=_CREATED_HERE,
        )


def authenticate(document: bytes, *, accepted_roots: Iterable[bytes], now: datetime) -> AttestationDocument:
    """Checks 1 to 7: well-formed, chained to an accepted root, signed, and about the module that signed.

    That alone trusts nobody: any enclave of any AWS account passes it.

    Raises:
        RejectedDocumentError: The class names the check that failed first.
    """
    parsed = parse_document(document)
    signer = verify_chain(parsed.cabundle, parsed.certificate, accepted_roots=accepted_roots, now=now)
    check_signature(parsed, signer.public_key)
    # 7. AWS issues the leaf to "<module_id>.<region>.aws".
    if not signer.common_name.startswith(f"{parsed.module_id}."):
        raise errors.ModuleIdError("the signing certificate was issued to another module")
    return parsed


def check_signature(document: AttestationDocument, key: ec.EllipticCurvePublicKey) -> None:
    """Check 6: ES384 over the received bytes; r and s are 48 bytes each, big-endian (RFC 9053, section 2.1).

    Raises:
        CoseSignatureError: The signature is another key's, or covers other bytes.
    """
    r, s = (int.from_bytes(half, "big") for half in (document.signature[:48], document.signature[48:]))
    try:
        key.verify(encode_dss_signature(r, s), document.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise errors.CoseSignatureError("the signature does not match the document") from None


def check_freshness(document: AttestationDocument, *, now: datetime, max_age: timedelta, max_future: timedelta) -> None:
    """Check 8: the module's clock and ours, on both sides.

    Raises:
        StaleDocumentError: The document is older than `max_age`.
        FutureDocumentError: The document is dated more than `max_future` ahead.
    """
    age = (now - _EPOCH) // _MILLISECOND - document.timestamp_ms  # as milliseconds: 2^53 of them exceed a datetime
    if age > max_age / _MILLISECOND:
        raise errors.StaleDocumentError(f"it is {age // 1000} seconds old, accepted are {max_age.total_seconds():g}")
    if -age > max_future / _MILLISECOND:
        raise errors.FutureDocumentError(
            f"it is dated {-age // 1000} seconds ahead, accepted are {max_future.total_seconds():g}"
        )


def check_nonce(nonce: bytes | None, expected: bytes) -> None:
    """Check 9: the document answers our request.

    Raises:
        MissingNonceError: There is none.
        ShortNonceError: It has fewer than 16 bytes, so that it could be guessed or met again.
        NonceMismatchError: It is another one.
    """
    if nonce is None:
        raise errors.MissingNonceError("the document carries no nonce")
    if len(nonce) < MIN_NONCE_SIZE:
        raise errors.ShortNonceError(f"the nonce has {len(nonce)} bytes, required are {MIN_NONCE_SIZE}")
    if not hmac.compare_digest(nonce, expected):
        raise errors.NonceMismatchError("the nonce is not the one that was asked for")


def check_image_pcrs(pcrs: Mapping[int, bytes], *, allow_debug: bool) -> None:
    """Check 10: the image is measured.

    In debug mode PCR0, 1 and 2 are zero while PCR4 (and PCR3, with a role) is not: "all PCRs are zero" would be the
    wrong test, and one zero image PCR is enough to reject.

    Raises:
        MissingPcrError: PCR0, PCR1 or PCR2 is not in the document.
        DebugModeError: One of them is zero.
    """
    for index in IMAGE_PCRS:
        if index not in pcrs:
            raise errors.MissingPcrError(f"PCR{index} is not in the document")
    if not allow_debug and any(pcrs[index] == bytes(PCR_SIZE) for index in IMAGE_PCRS):
        raise errors.DebugModeError("PCR0, PCR1 or PCR2 is zero: the enclave runs in debug mode")


def check_pcr_sets(pcrs: Mapping[int, bytes], allowed: Iterable[Mapping[int, bytes]]) -> None:
    """Check 11: the PCRs equal one allowed set, the whole of it; values of two sets never mix.

    Raises:
        PcrSetError: They equal none.
    """
    if not any(all(_pcr_equals(pcrs, index, value) for index, value in one.items()) for one in allowed):
        raise errors.PcrSetError("the measurements are none of the allowed sets")


def check_identity(document: VerifiedDocument, expectations: Expectations) -> None:
    """Check 12: this is the enclave that we launched, on our instance, in our role.

    Raises:
        LaunchedEnclaveError: The module_id is another enclave's.
        InstancePcrError: PCR4 measures another parent instance.
        RolePcrError: PCR3 measures another role.
        ExpectedPcrError: Another expected PCR differs.
    """
    pcrs = document.pcrs
    if expectations.enclave_id is not None and not _same_enclave(document.module_id, expectations.enclave_id):
        raise errors.LaunchedEnclaveError("the document is about another enclave than the one that was launched")
    if expectations.instance_id is not None:
        instance = extended_pcr(expectations.instance_id.encode())
        if not _pcr_equals(pcrs, INSTANCE_PCR, instance):
            raise errors.InstancePcrError("PCR4 does not measure this parent instance")
    if expectations.role_arn is not None:
        role = extended_pcr(expectations.role_arn.encode())
        if not _pcr_equals(pcrs, ROLE_PCR, role):
            raise errors.RolePcrError("PCR3 does not measure the expected role")
    for index, value in expectations.pcrs.items():
        if not _pcr_equals(pcrs, index, value):
            raise errors.ExpectedPcrError(f"PCR{index} does not hold the expected value")


def check_binding(document: VerifiedDocument, expectations: Expectations) -> bytes:
    """Check 13: the document commits to a WireGuard key and to the messages of this exchange.

    Returns:
        The attested WireGuard public key, 32 bytes: the one to install, whatever key was named elsewhere.

    Raises:
        PublicKeyError: public_key is no X25519 SubjectPublicKeyInfo, or a key of small order.
        UserDataError: user_data is not the binding that the relay computed.
        WireguardKeyPcrError: The key PCR does not hold the commitment to this key.
    """
    public_key = decode_x25519_spki(document.public_key)
    if has_small_order(public_key):
        raise errors.PublicKeyError("the public key has small order: everybody shares its secrets")
    bound = document.user_data or b""
    # An empty expectation is one that nobody filled in: it must not match a document that binds nothing.
    if not bound or not hmac.compare_digest(bound, expectations.user_data):
        raise errors.UserDataError("user_data is not the hash of the messages that the relay sent and received")
    if expectations.wireguard_key_pcr is not None:
        spki = document.public_key or b""
        committed = extended_pcr(wireguard_key_commitment(spki))
        if not _pcr_equals(document.pcrs, expectations.wireguard_key_pcr, committed):
            raise errors.WireguardKeyPcrError(
                f"PCR{expectations.wireguard_key_pcr} does not hold the commitment to the attested key"
            )
    return public_key


def _pcr_equals(pcrs: Mapping[int, bytes], index: int, expected: bytes) -> bool:
    return index in pcrs and hmac.compare_digest(pcrs[index], expected)


def _same_enclave(module_id: str, enclave_id: str) -> bool:
    try:
        return parse_enclave_id(module_id) == parse_enclave_id(enclave_id)
    except ConfigurationError:
        return False
