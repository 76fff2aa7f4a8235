"""What a verifier accepts from any enclave (`Policy`), and what it knows about the one it expects (`Expectations`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from wgvsock.attestation.binding import parse_enclave_id
from wgvsock.attestation.document import MAX_PCRS, PCR_SIZE
from wgvsock.attestation.evidence import AllowedSet
from wgvsock.attestation.measurements import FINGERPRINT_SIZE
from wgvsock.errors import ConfigurationError

AWS_NITRO_ROOT_G1: Final = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")
"""SHA-256 of AWS's root certificate G1, DER (AWS Nitro Enclaves user guide, "Verifying the root of trust")."""

IMAGE_PCRS: Final = (0, 1, 2)
"""PCR0 the image, PCR1 its kernel and boot ramdisk, PCR2 the application."""

ROLE_PCR: Final = 3
INSTANCE_PCR: Final = 4
WIREGUARD_KEY_PCR: Final = 16
"""First PCR that the enclave itself may extend. Our agent commits its WireGuard key to it."""

MIN_NONCE_SIZE: Final = 16
"""Bytes: 128 unguessable bits (NIST SP 800-57 part 1)."""

DEFAULT_MAX_AGE: Final = timedelta(seconds=120)
DEFAULT_MAX_FUTURE: Final = timedelta(seconds=30)
"""Tolerance for the difference between the clocks of relay and enclave. The nonce is what proves freshness."""

_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
_ROLE_ARN: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class PcrSet:
    """One complete set of measurements. A document matches if every PCR named here holds exactly this value.

    Args:
        values: 48-byte values by index. PCR0, PCR1 and PCR2 are mandatory, as one alone does not identify an image.
        name: A label for people, such as an image's tag.

    Raises:
        ConfigurationError: An image PCR is missing, or an index or a length is wrong.
    """

    values: Mapping[int, bytes]
    name: str = ""

    def __post_init__(self) -> None:
        missing = [index for index in IMAGE_PCRS if index not in self.values]
        if missing:
            raise ConfigurationError(
                "the set of allowed PCRs is incomplete",
                why=f"PCR{missing[0]} is missing",
                fix="give PCR0, PCR1 and PCR2 as nitro-cli build-enclave prints them",
            )
        object.__setattr__(self, "values", _checked_pcrs(self.values))


@dataclass(frozen=True, slots=True)
class Policy:
    """What a verifier accepts from any enclave.

    Args:
        pcr_sets: Allowed measurements. A document has to match one complete set.
        accepted_roots: SHA-256 digests of root certificates (DER), 32 bytes each. The default is AWS's G1.
        max_age: Oldest document to accept.
        max_future: How far a document may be dated ahead of the verifier's clock.
        allow_debug: Accept image PCRs of zero. Such an enclave is not measured and its console is readable: tests only.

    Raises:
        ConfigurationError: There is no set or no root, a root is not a SHA-256 digest, or an age is negative.
    """

    pcr_sets: tuple[PcrSet, ...]
    accepted_roots: tuple[bytes, ...] = (AWS_NITRO_ROOT_G1,)
    max_age: timedelta = DEFAULT_MAX_AGE
    max_future: timedelta = DEFAULT_MAX_FUTURE
    allow_debug: bool = False

    def __post_init__(self) -> None:
        if not self.pcr_sets:
            raise ConfigurationError(
                "the attestation policy allows no enclave",
                why="it names no PCR set",
                fix="add the measurements that nitro-cli build-enclave printed for your image",
            )
        check_roots(self.accepted_roots)
        if min(self.max_age, self.max_future) < timedelta(0):
            raise ConfigurationError("the attestation policy accepts no document", why="an age limit is negative")

    def allowed_sets(self) -> list[AllowedSet]:
        """The sets by name, as `wgvsock.attestation.evidence` compares them."""
        return [(one.name, one.values) for one in self.pcr_sets]


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the relay knows about the one enclave and the one exchange that a document has to be about.

    Args:
        user_data: The binding to the provisioning messages, recomputed from the bytes that the relay sent and received.
        enclave_id: EnclaveID as nitro-cli prints it, or the module_id of the enclave that was attested before. None
            when the relay attaches to an enclave that it did not launch.
        instance_id: Our own parent instance (``i-…``), which PCR4 measures.
        role_arn: The parent's IAM role, which PCR3 measures.
        pcrs: Further exact values, such as PCR8, the fingerprint of the image's signing certificate.
        wireguard_key_pcr: PCR that the enclave's agent extended with the commitment to its key. None: switched off.
        own_public_key: The WireGuard key that the relay uses in this exchange, 32 bytes. It is never an enclave's.

    Raises:
        ConfigurationError: The enclave's id, the instance's id or the role is malformed, or a PCR's index or length is
            wrong.
    """

    user_data: bytes
    enclave_id: str | None = None
    instance_id: str | None = None
    role_arn: str | None = None
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    wireguard_key_pcr: int | None = WIREGUARD_KEY_PCR
    own_public_key: bytes | None = None

    def __post_init__(self) -> None:
        if self.enclave_id is not None:
            parse_enclave_id(self.enclave_id)
        # PCR3 and PCR4 hold hashes: a malformed text would never match, and nothing would say why.
        if self.instance_id is not None and _INSTANCE_ID.fullmatch(self.instance_id) is None:
            raise ConfigurationError(
                "cannot use the id of the parent instance",
                why="it does not have the form i-0123456789abcdef0",
                fix="use the instance-id of the instance's metadata",
            )
        if self.role_arn is not None and _ROLE_ARN.fullmatch(self.role_arn) is None:
            raise ConfigurationError(
                "cannot use the ARN of the parent instance's role",
                why="it does not have the form arn:aws:iam::123456789012:role/NAME",
                fix="give the ARN of the IAM role itself, not of its instance profile or of an assumed role",
            )
        object.__setattr__(self, "pcrs", _checked_pcrs(self.pcrs))


def check_roots(accepted_roots: tuple[bytes, ...]) -> None:
    """Check that there is at least one root to accept, and that each is a SHA-256 digest.

    Args:
        accepted_roots: 32 bytes each.

    Raises:
        ConfigurationError: There is no root, or one does not have 32 bytes.
    """
    if not accepted_roots or any(len(root) != FINGERPRINT_SIZE for root in accepted_roots):
        raise ConfigurationError(
            "the accepted attestation roots are invalid",
            why="there is none, or one is not a SHA-256 digest of 32 bytes",
            fix="leave the setting out to accept AWS's root G1 alone",
        )


def _checked_pcrs(pcrs: Mapping[int, bytes]) -> Mapping[int, bytes]:
    for index, value in pcrs.items():
        if not 0 <= index < MAX_PCRS:
            raise _malformed(f"PCR{index} does not exist; there are PCR0 to PCR{MAX_PCRS - 1}")
        if len(value) != PCR_SIZE:
            raise _malformed(f"PCR{index} has {len(value)} bytes instead of {PCR_SIZE}")
    return MappingProxyType(dict(pcrs))


def _malformed(why: str) -> ConfigurationError:
    return ConfigurationError(
        "cannot use the given PCRs",
        why=why,
        fix="give PCRs as nitro-cli build-enclave prints them: 96 hexadecimal digits each",
    )
