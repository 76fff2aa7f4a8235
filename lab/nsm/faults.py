"""The knobs: what the fake module does wrong, and nothing of it unless asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lab.nsm.pki import CertificateDefect, Level


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of the next documents; every field is one knob, and the default of each is "no fault".

    The values cross the control socket as CBOR, so that they are plain ones: ``Faults(**mapping)`` takes them.

    Args:
        debug: PCR0, PCR1 and PCR2 are zero, as in an enclave started in debug mode.
        wrong_root: The chain begins at another root than the one that was published.
        certificates: What is wrong with which certificate: defect by level.
        clock_offset: Seconds added to the document's timestamp: negative is stale, positive is from the future.
        module_id: The document is another enclave's, and so is its leaf.
        leaf_module_id: The leaf alone was issued to another enclave.
        pcrs: PCRs with other values than the bank's: another image's, instance's, role's.
        without_pcrs: PCRs that the document lacks.
        payload: Payload fields with other values, whatever the module was asked for: nonce, user_data, public_key, …
        without: Payload fields that are missing.
        duplicate_key: The payload names its nonce twice.
        protected: Other protected header bytes.
        der_signature: The signature is a DER sequence instead of two 48-byte integers.
        corrupt_signature: One bit of the signature is wrong.
        tagged: COSE's tag 18 stands in front (not a fault: AWS's text allows it).
        trailing_bytes: So many zero bytes follow the document.
        truncated_to: So many bytes of the document arrive.
        error: The module refuses to attest, with this error name.
        delay: Seconds that the module takes for an answer; a hang is a long delay.
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
