"""The settings for what the fake module does wrong. By default it does nothing wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lab.nsm.pki import CertificateDefect, Level


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of the next documents. Every field is one setting, and its default means "no fault".

    The values cross the control socket as CBOR, so they are plain values: ``Faults(**mapping)`` accepts them.

    Args:
        debug: PCR0, PCR1 and PCR2 are zero, as in an enclave started in debug mode.
        wrong_root: The chain begins at a root other than the published one.
        certificates: What is wrong with which certificate: defect by level.
        clock_offset: Seconds added to the document's timestamp: negative is stale, positive is in the future.
        module_id: The document is another enclave's, and so is its leaf.
        leaf_module_id: Only the leaf was issued to another enclave.
        pcrs: PCRs with values other than the bank's: another image's, instance's, role's.
        without_pcrs: PCRs that the document lacks.
        payload: Payload fields with other values, whatever the request was: nonce, user_data, public_key, …
        without: Payload fields that are missing.
        duplicate_key: The payload names its nonce twice.
        closed_map: The payload's map says how many entries follow, as AWS wrote it until 2025. By default it is open,
            ``bf … ff``, as AWS has written it since (not a fault).
        protected: Other protected header bytes.
        der_signature: The signature is a DER sequence instead of two 48-byte integers.
        corrupt_signature: One bit of the signature is wrong.
        tagged: COSE's tag 18 precedes the document (not a fault: AWS's text allows it).
        trailing_bytes: Number of zero bytes after the document.
        truncated_to: Number of bytes of the document that arrive.
        error: The module refuses to attest, with this error name.
        delay: Seconds that the module takes for an answer. A hang is a long delay.
    """

    debug: bool = False
    wrong_root: bool = False
    certificates: Mapping[Level, CertificateDefect] = field(default_factory=dict)
    clock_offset: float = 0.0
    module_id: str | None = None
    leaf_module_id: str | None = None
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    without_pcrs: tuple[int, ...] = ()
    payload: Mapping[str, object] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    duplicate_key: bool = False
    closed_map: bool = False
    protected: bytes | None = None
    der_signature: bool = False
    corrupt_signature: bool = False
    tagged: bool = False
    trailing_bytes: int = 0
    truncated_to: int | None = None
    error: str | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        certificates = {Level(level): CertificateDefect(defect) for level, defect in self.certificates.items()}
        object.__setattr__(self, "certificates", certificates)
