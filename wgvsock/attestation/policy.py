"""What a verifier accepts of any enclave (`Policy`), and what it knows of the one that it means (`Expectations`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from wgvsock.attestation.binding import parse_enclave_id
from wgvsock.attestation.document import MAX_PCRS, PCR_SIZE
from wgvsock.errors import ConfigurationError

AWS_NITRO_ROOT_G1: Final = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")
"""SHA-256 of AWS's root certificate G1, DER (AWS Nitro Enclaves user guide, "Verifying the root of trust")."""

IMAGE_PCRS: Final = (0, 1, 2)
"""PCR0 the image, PCR1 its kernel and boot ramdisk, PCR2 the application."""

ROLE_PCR: Final = 3
INSTANCE_PCR: Final = 4
WIREGUARD_KEY_PCR: Final = 16
"""First PCR that the enclave itself may extend; our agent commits it to its WireGuard key."""

MIN_NONCE_SIZE: Final = 16
"""Bytes: 128 unguessable bits (NIST SP 800-57 part 1)."""

DEFAULT_MAX_AGE: Final = timedelta(seconds=120)
DEFAULT_MAX_FUTURE: Final = timedelta(seconds=30)
"""Room for the clocks of relay and enclave to differ; the nonce is what proves freshness."""

_FINGERPRINT_SIZE: Final = 32
_PCR_NAME: Final = re.compile(r"PCR([0-9]{1,2})")


@dataclass(frozen=True, slots=True)
class PcrSet:
    """One complete set of measurements: a document matches when every PCR named here holds exactly this value.

    Args:
        values: 48-byte values by index; PCR0, PCR1 and PCR2 are mandatory, for one alone does not identify an image.
        name: For people, such as an image's tag.

    Raises:
        ConfigurationError: An image PCR is missing, or an index or a length is wrong.
    """

    values: Mapping[int, bytes]
    name: str = ""

    def __post_init__(self) -> None:
        missing = [index for index in IMAGE_PCRS if index not in self.values]
        if missing:
            raise ConfigurationError(
                "the set of allowed PCRs is not complete",
                why=f"PCR{missing[0]} is missing",
                fix="give PCR0, PCR1 and PCR2 as nitro-cli build-enclave prints them",
            )
        object.__setattr__(self, "values", _checked_pcrs(self.values))


@dataclass(frozen=True, slots=True)
class Policy:
    """What a verifier accepts of any enclave.

    Args:
        pcr_sets: Allowed measurements; a document has to match one complete set.
        accepted_roots: SHA-256 digests of root certificates (DER); AWS's G1 unless configured.
        max_age: Oldest document to accept.
        max_future: How far a document may be dated ahead of the verifier's clock.
        allow_debug: Accept zero image PCRs. Such an enclave is not measured and its console is readable: tests only.

    Raises:
        ConfigurationError: No set, no root, a root that is no SHA-256 digest, or a negative age.
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
                why="it names no set of PCRs",
                fix="add the measurements that nitro-cli build-enclave printed for your image",
            )
        check_roots(self.accepted_roots)
        if min(self.max_age, self.max_future) < timedelta(0):
            raise ConfigurationError("the attestation policy accepts no document", why="an age limit is negative")


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the relay knows of the one enclave and the one exchange that a document has to be about.

    Args:
        user_data: The binding to the provisioning messages, recomputed from the bytes that the relay sent and received.
        enclave_id: EnclaveID as nitro-cli prints it; None when the relay attached to an enclave it did not launch.
        instance_id: Our own parent instance (``i-…``), which PCR4 measures.
        role_arn: The parent's IAM role, which PCR3 measures.
        pcrs: Further exact values, such as PCR8, the fingerprint of the image's signing certificate.
        wireguard_key_pcr: PCR that the enclave's agent extended with the commitment to its key; None when switched off.

    Raises:
        ConfigurationError: The enclave_id has another form, or a PCR's index or length is wrong.
    """

    user_data: bytes
    enclave_id: str | None = None
    instance_id: str | None = None
    role_arn: str | None = None
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    wireguard_key_pcr: int | None = WIREGUARD_KEY_PCR

    def __post_init__(self) -> None:
        if self.enclave_id is not None:
            parse_enclave_id(self.enclave_id)
        object.__setattr__(self, "pcrs", _checked_pcrs(self.pcrs))


def parse_measurements(build_output: object) -> dict[int, bytes]:
    """PCRs by index from parsed JSON: what ``nitro-cli build-enclave`` prints, or a plain ``{"PCR0": "…"}``.

    Raises:
        ConfigurationError: It is neither, it holds no PCR, or a value is no 48-byte hexadecimal text.
    """
    measurements = build_output.get("Measurements", build_output) if isinstance(build_output, dict) else None
    if not isinstance(measurements, dict):
        raise _malformed("there is no object with PCR0, PCR1, …")
    pcrs: dict[int, bytes] = {}
    for name, value in measurements.items():
        if name == "HashAlgorithm":  # "Sha384 { ... }"
            continue
        match = _PCR_NAME.fullmatch(str(name))
        if match is None or not isinstance(value, str):
            raise _malformed("a name is not PCR0 to PCR31, or its value is no text")
        try:
            pcrs[int(match[1])] = bytes.fromhex(value)
        except ValueError:
            raise _malformed(f"{match[0]} is not hexadecimal") from None
    if not pcrs:
        raise _malformed("there is no PCR in it")
    return dict(_checked_pcrs(pcrs))


def check_roots(accepted_roots: tuple[bytes, ...]) -> None:
    """Check that there is a root to accept and that each is a SHA-256 digest.

    Raises:
        ConfigurationError: It is not so.
    """
    if not accepted_roots or any(len(root) != _FINGERPRINT_SIZE for root in accepted_roots):
        raise ConfigurationError(
            "the accepted attestation roots are wrong",
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
