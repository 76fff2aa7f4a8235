"""The enclave's identity: entropy from the Nitro Security Module, the WireGuard key, and the PCR that commits to it."""

from __future__ import annotations

import fcntl
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wgvsock.attestation.binding import encode_x25519_spki, extended_pcr, wireguard_key_commitment
from wgvsock.devices.nsm import NsmClient
from wgvsock.enclave.errors import KeyCommitmentError
from wgvsock.telemetry.logs import fields
from wgvsock.wireguard.primitives import generate_private_key, public_key

_ENTROPY_DEVICE: Final = Path("/dev/random")
_RNDADDENTROPY: Final = 0x40085203  # random(4); struct rand_pool_info {int entropy_count; int buf_size; buf}

_log = logging.getLogger(__name__)


def seed_kernel(nsm: NsmClient, device: Path = _ENTROPY_DEVICE, *, ioctl: Callable[..., object] = fcntl.ioctl) -> None:
    """Seed the kernel's random number generator with 256 bytes from the module.

    An enclave boots without a disk, a keyboard or a saved seed. AWS names the module as its source of entropy (NSM API,
    GetRandom). The application benefits as well. Without the right to credit entropy, the bytes are still mixed in.

    Raises:
        NsmError: The module returned none.
    """
    entropy = nsm.random()
    with device.open("r+b", buffering=0) as generator:
        try:
            ioctl(generator, _RNDADDENTROPY, struct.pack("=ii", 8 * len(entropy), len(entropy)) + entropy)
        except OSError:
            generator.write(entropy)


def make_key(random: Callable[[int], bytes]) -> bytes:
    """Generate a WireGuard private key. It never leaves this process and ends with it.

    Args:
        random: Source of entropy, called with a number of bytes.

    Returns:
        The key, 32 bytes.
    """
    return generate_private_key(random)


def commit_to_key(nsm: NsmClient, private_key: bytes, index: int) -> None:
    """Extend a PCR with a commitment to the key and lock it: no other key can be attested until the next boot.

    Args:
        nsm: The security module.
        private_key: The WireGuard private key, 32 bytes. The commitment is to its public key.
        index: Index of the PCR.

    Raises:
        KeyCommitmentError: The PCR was already extended or locked: something else in this enclave uses it.
        NsmError: The module failed.
    """
    commitment = wireguard_key_commitment(encode_x25519_spki(public_key(private_key)))
    state = nsm.describe_pcr(index)
    if state.locked or any(state.value):
        raise KeyCommitmentError(
            f"cannot commit PCR{index} to the WireGuard key",
            why=f"it is already {'locked' if state.locked else 'extended'}: another agent ran in this enclave",
            fix='restart the enclave, or choose another "key_pcr" on both sides',
        )
    if nsm.extend_pcr(index, commitment) != extended_pcr(commitment):
        raise KeyCommitmentError(
            f"PCR{index} does not hold the commitment",
            why="its new value is not the expected one",
            fix="restart the enclave",
        )
    nsm.lock_pcr(index)
    _log.info("a PCR commits to the WireGuard key", extra=fields(pcr=index))
