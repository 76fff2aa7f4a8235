"""The verifier: makes every check of a document in order and fails closed. Each check has its own error class.

``authenticate`` proves that a genuine module made the document (checks 1 to 7). ``Verifier.verify`` adds that it is
fresh, answers our nonce and comes from an allowed image (8 to 11). ``Verifier.verify_enclave`` adds that it speaks for
the enclave and the exchange that the relay expects (12 and 13). Only the last one makes an `AttestedEnclave`, and only
an `AttestedEnclave` becomes a peer.

ECDSA signatures are malleable, so one document has several valid encodings. The nonce detects replays, not a hash.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from wgvsock.attestation import errors
from wgvsock.attestation.binding import (
    check_wireguard_key,
    decode_x25519_spki,
    extended_pcr,
    is_enclave_id,
    is_same_key,
    parse_enclave_id,
    wireguard_key_commitment,
)
from wgvsock.attestation.certificates import verify_chain
from wgvsock.attestation.document import PCR_SIZE, AttestationDocument, parse_document
from wgvsock.attestation.evidence import AllowedSet, Evidence, compare, difference, nearest
from wgvsock.attestation.policy import (
    IMAGE_PCRS,
    INSTANCE_PCR,
    MIN_NONCE_SIZE,
    ROLE_PCR,
    Expectations,
    Policy,
)
from wgvsock.errors import LocalProtocolError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
_CREATED_HERE: Final = object()


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """The contents of a document that passed checks 1 to 11.

    `timestamp` is the module's clock, UTC. `pcrs` holds the locked PCRs, 48 bytes each.
    """

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    nonce: bytes | None
    user_data: bytes | None
    public_key: bytes | None


@dataclass(frozen=True, slots=True)
class AttestedEnclave:
    """An enclave that passed every check. `wireguard_public_key` (32 bytes) is its only key.

    Only `Verifier.verify_enclave` can make one. `matched` is the name of the allowed set that its measurements match,
    or "" if the set has no name.

    Raises:
        LocalProtocolError: Something else tried.
    """

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    wireguard_public_key: bytes
    _made_by: InitVar[object]
    matched: str = ""

    def __post_init__(self, _made_by: object) -> None:
        if _made_by is not _CREATED_HERE:
            raise LocalProtocolError(
                "cannot declare an enclave attested", why="only the verifier that checked its document can"
            )


class Verifier:
    """Applies one policy to documents, and keeps no state between them."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def verify(self, document: bytes, *, nonce: bytes, now: datetime) -> VerifiedDocument:
        """Apply checks 1 to 11.

        Args:
            document: The bytes as received.
            nonce: What the document has to carry: at least 16 unguessable bytes, used once.
            now: The verifier's wall clock, time-zone aware.

        Raises:
            RejectedDocumentError: The class names the check that failed first.
        """
        answer = authenticate(document, accepted_roots=self._policy.accepted_roots, now=now)
        self._check_answer(answer, nonce, now)
        return self._measured(answer)[0]

    def verify_enclave(
        self, document: bytes, *, nonce: bytes, now: datetime, expectations: Expectations
    ) -> AttestedEnclave:
        """Apply all checks, and vouch for the enclave.

        Check 12 comes before 10 and 11: PCRs count against the expected enclave only if the document is its own. Once
        the enclave's id proves that, a refusal for a PCR is `RejectedDocumentError.final`.

        Args:
            document: The bytes as received.
            nonce: What the relay put into its request.
            now: The relay's wall clock, time-zone aware.
            expectations: What the relay knows of the enclave and of the exchange.

        Raises:
            RejectedDocumentError: The class names the check that failed first.
        """
        answer = None
        try:
            answer = authenticate(document, accepted_roots=self._policy.accepted_roots, now=now)
            self._check_answer(answer, nonce, now)
            check_identity(answer, expectations)
            verified, matched = self._measured(answer)
            public_key = check_binding(verified, expectations)
        except errors.RejectedDocumentError as error:
            error.final = isinstance(error, errors.MeasurementError) and expectations.enclave_id is not None
            error.evidence = self._evidence(answer, expectations, document)
            raise
        return AttestedEnclave(
            module_id=verified.module_id,
            timestamp=verified.timestamp,
            pcrs=verified.pcrs,
            wireguard_public_key=public_key,
            matched=matched,
            _made_by=_CREATED_HERE,
        )

    def check_attested(self, enclave: AttestedEnclave, expectations: Expectations) -> str:
        """Apply checks 10 to 12 again, to an enclave that was attested under an earlier policy.

        Returns:
            The name of the allowed set that it matches now.

        Raises:
            RejectedDocumentError: This policy would have refused it. Final, as the document proved the measurements.
        """
        try:
            check_identity(enclave, expectations)
            check_image_pcrs(enclave.pcrs, allow_debug=self._policy.allow_debug)
            return check_pcr_sets(enclave.pcrs, self._policy.allowed_sets())
        except errors.RejectedDocumentError as error:
            error.final = True
            error.evidence = self._evidence(enclave, expectations)
            raise

    def _check_answer(self, answer: AttestationDocument, nonce: bytes, now: datetime) -> None:
        """Checks 8 and 9: some genuine module answers our request now."""
        check_freshness(answer, now=now, max_age=self._policy.max_age, max_future=self._policy.max_future)
        check_nonce(answer.nonce, nonce)

    def _measured(self, answer: AttestationDocument) -> tuple[VerifiedDocument, str]:
        """Checks 10 and 11: the image is allowed. Returns the document and the name of the matching set."""
        check_image_pcrs(answer.pcrs, allow_debug=self._policy.allow_debug)
        matched = check_pcr_sets(answer.pcrs, self._policy.allowed_sets())
        verified = VerifiedDocument(
            module_id=answer.module_id,
            timestamp=EPOCH + answer.timestamp_ms * MILLISECOND,
            pcrs=answer.pcrs,
            nonce=answer.nonce,
            user_data=answer.user_data,
            public_key=answer.public_key,
        )
        return verified, matched

    def _evidence(
        self, genuine: AttestationDocument | AttestedEnclave | None, expectations: Expectations, document: bytes = b""
    ) -> Evidence:
        key_pcr = expectations.wireguard_key_pcr
        if isinstance(genuine, AttestationDocument) and genuine.public_key and key_pcr is not None:
            committed = {key_pcr: extended_pcr(wireguard_key_commitment(genuine.public_key))}
            expectations = replace(expectations, pcrs=committed | dict(expectations.pcrs))
        return gather(genuine, self._policy.allowed_sets(), expectations, document)


def gather(
    genuine: AttestationDocument | AttestedEnclave | None,
    sets: list[AllowedSet],
    expectations: Expectations,
    document: bytes = b"",
) -> Evidence:
    """Collect what a refused document says, next to what is expected.

    Args:
        genuine: What a genuine module is known to have signed, or None.
        sets: The allowed measurements.
        expectations: What is known about the enclave.
        document: The bytes as received.
    """
    if genuine is None:
        return Evidence(document, sets=len(sets))
    name, values = nearest(genuine.pcrs, sets)
    wanted = {**values, **expected_registers(expectations)}
    return Evidence(document, genuine.module_id, genuine.pcrs, name, len(sets), compare(genuine.pcrs, wanted))


def expected_registers(expectations: Expectations) -> dict[int, bytes]:
    """The PCR values, 48 bytes each, that follow from what is known about an enclave. Its image's are not included."""
    wanted = dict(expectations.pcrs)
    if expectations.instance_id is not None:
        wanted[INSTANCE_PCR] = extended_pcr(expectations.instance_id.encode())
    if expectations.role_arn is not None:
        wanted[ROLE_PCR] = extended_pcr(expectations.role_arn.encode())
    return wanted


def authenticate(document: bytes, *, accepted_roots: Iterable[bytes], now: datetime) -> AttestationDocument:
    """Apply checks 1 to 7: well-formed, chained to an accepted root, signed, and about the module that signed.

    That alone is no reason for trust: any enclave of any AWS account passes.

    Args:
        document: The bytes as received.
        accepted_roots: SHA-256 digests of root certificates (DER), 32 bytes each.
        now: The verifier's wall clock, time-zone aware.

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
    """Check 6: ES384 over the received bytes. r and s have 48 bytes each, big-endian (RFC 9053, section 2.1).

    Raises:
        CoseSignatureError: Another key made the signature, or it covers other bytes.
    """
    r, s = (int.from_bytes(half, "big") for half in (document.signature[:48], document.signature[48:]))
    try:
        key.verify(encode_dss_signature(r, s), document.signed_bytes(), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise errors.CoseSignatureError("the signature does not match the document") from None


def check_freshness(document: AttestationDocument, *, now: datetime, max_age: timedelta, max_future: timedelta) -> None:
    """Check 8: the module's clock is neither too far behind ours nor too far ahead.

    Raises:
        StaleDocumentError: The document is older than `max_age`.
        FutureDocumentError: The document is dated more than `max_future` ahead.
    """
    age = (now - EPOCH) // MILLISECOND - document.timestamp_ms  # as milliseconds: 2^53 of them exceed a datetime
    if age > max_age / MILLISECOND:
        raise errors.StaleDocumentError(
            f"it is {age // 1000} seconds old, and the limit is {max_age.total_seconds():g}"
        )
    if -age > max_future / MILLISECOND:
        raise errors.FutureDocumentError(
            f"it is dated {-age // 1000} seconds ahead, and the limit is {max_future.total_seconds():g}"
        )


def check_nonce(nonce: bytes | None, expected: bytes) -> None:
    """Check 9: the document answers our request.

    Raises:
        MissingNonceError: There is none.
        ShortNonceError: It has fewer than 16 bytes, so that it could be guessed or repeated by chance.
        NonceMismatchError: It is not the expected one.
    """
    if nonce is None:
        raise errors.MissingNonceError("the document carries no nonce")
    if len(nonce) < MIN_NONCE_SIZE:
        raise errors.ShortNonceError(f"the nonce has {len(nonce)} bytes, and at least {MIN_NONCE_SIZE} are required")
    if not hmac.compare_digest(nonce, expected):
        raise errors.NonceMismatchError("the nonce is not the one that was requested")


def check_image_pcrs(pcrs: Mapping[int, bytes], *, allow_debug: bool) -> None:
    """Check 10: the image is measured.

    In debug mode PCR0, 1 and 2 are zero while PCR4 (and PCR3, with a role) is not: "all PCRs are zero" would be the
    wrong test, and one zero image PCR is enough to reject.

    Args:
        pcrs: The measured values by index, 48 bytes each.
        allow_debug: Accept zeros.

    Raises:
        MissingPcrError: PCR0, PCR1 or PCR2 is not in the document.
        DebugModeError: One of them is zero.
    """
    for index in IMAGE_PCRS:
        if index not in pcrs:
            raise errors.MissingPcrError(f"PCR{index} is not in the document")
    if not allow_debug and any(pcrs[index] == bytes(PCR_SIZE) for index in IMAGE_PCRS):
        raise errors.DebugModeError("PCR0, PCR1 or PCR2 is zero: the enclave runs in debug mode")


def check_pcr_sets(pcrs: Mapping[int, bytes], allowed: list[AllowedSet]) -> str:
    """Check 11: the PCRs match one complete allowed set. Values of two sets never mix.

    Args:
        pcrs: The measured values by index, 48 bytes each.
        allowed: The allowed sets.

    Returns:
        The name of that set.

    Raises:
        PcrSetError: They match none.
    """
    for name, values in allowed:
        if all(_pcr_equals(pcrs, index, value) for index, value in values.items()):
            return name
    raise errors.PcrSetError(difference(pcrs, allowed))


def check_identity(
    document: VerifiedDocument | AttestationDocument | AttestedEnclave, expectations: Expectations
) -> None:
    """Check 12: this is the enclave that we launched, on our instance, in our role.

    Raises:
        LaunchedEnclaveError: The module_id is another enclave's.
        InstancePcrError: PCR4 measures another parent instance.
        RolePcrError: PCR3 measures another role.
        ExpectedPcrError: A further PCR differs from its expected value.
    """
    pcrs = document.pcrs
    if expectations.enclave_id is not None and not _same_enclave(document.module_id, expectations.enclave_id):
        raise errors.LaunchedEnclaveError("the document is about an enclave other than the expected one")
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
        The attested WireGuard public key, 32 bytes. Install this one, no matter which key was named elsewhere.

    Raises:
        PublicKeyError: public_key is not an X25519 SubjectPublicKeyInfo, or is a key of small order.
        OwnPublicKeyError: It is the relay's own key, in any encoding.
        UserDataError: user_data is not the binding that the relay computed.
        WireguardKeyPcrError: The key PCR does not hold the commitment to this key.
    """
    public_key = decode_x25519_spki(document.public_key)
    check_wireguard_key(public_key)
    if expectations.own_public_key is not None and is_same_key(public_key, expectations.own_public_key):
        raise errors.OwnPublicKeyError("the public key is the relay's own")
    bound = document.user_data or b""
    # An empty expectation was never filled in: it must not match a document that binds nothing.
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
    return is_enclave_id(module_id) and parse_enclave_id(module_id) == parse_enclave_id(enclave_id)
